"""What machine this is: what it says about itself, what can be measured of it, what it amounts to.

Whatever cannot be read is null, and `reasons` says why. Host names, user names, paths and serial
numbers are never read; a GPU's UUID leaves only as a salted hash.
"""

from kit.hardware.fingerprint import fingerprint, gpu_facts
from kit.hardware.gpu_class import gpu_class
from kit.hardware.host import host_facts
from kit.hardware.probes import probe_cpu, probe_gpu

__all__ = ["fingerprint", "gpu_class", "gpu_facts", "host_facts", "probe_cpu", "probe_gpu"]
