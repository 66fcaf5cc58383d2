"""V11 and V12: the machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tamper
from tamper import Draft

from mutations.registry import mutation, typed


@mutation("two GPUs", "V11", kind="draft")
def _(draft: Draft) -> None:
    for found in draft.fingerprints():
        found["gpus"].append(tamper.gpu_4090(uuid_hash="sha256:" + "5" * 64))


@mutation("a neighbour on the GPU", "V11", kind="draft")
def _(draft: Draft) -> None:
    draft.fingerprints()[0]["gpus"][0].update(processes=2, foreign_processes=2)


@mutation("five gigabytes from the network", "V11", kind="draft")
def _(draft: Draft) -> None:
    draft.events[-1]["data"]["environment"]["rx_bytes"] += 5 * 10**9


def machine_mutation(
    name: str, change: Callable[[dict[str, Any]], Any], expected: str = "V12"
) -> None:
    """Both fingerprints of another machine, with the class that the kit gives them."""

    @mutation(name, expected, kind="draft")
    def apply(draft: Draft) -> None:
        for found in draft.fingerprints():
            change(found)
            tamper.reclassify(found)


def probe(**figures: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda found: found["probes"]["gpu"].update(figures)


machine_mutation(
    "an H100 that calls itself a 4090",
    probe(capability=[9, 0], sm_count=132, fp16_accumulation_ratio=1.0, fp64_share=0.9),
)
machine_mutation(
    "an L40S slowed down to a 4090's speed",
    probe(sm_count=142, fp16_accumulation_ratio=1.01, l2_knee_bytes=100_663_296.0),
)
machine_mutation("an A100's ratios", probe(capability=[8, 0], fp64_share=0.5))
machine_mutation("a 4090 D", probe(sm_count=114))
machine_mutation("a laptop's 4090", probe(sm_count=76, copy_gb_s=540.0))
machine_mutation("a 3090", probe(capability=[8, 6], sm_count=82, l2_knee_bytes=6_291_456.0))
machine_mutation("a 5090", probe(capability=[12, 0], sm_count=170, copy_gb_s=1600.0))
machine_mutation("a 4090 with 48 GB", probe(memory_bytes=51_000_000_000))
machine_mutation("a 4090 D's PCI id", lambda found: found["gpus"][0].update(pci_id="10de:2685"))
machine_mutation("CUDA names another card", probe(name="NVIDIA L40S"))
machine_mutation("faster than any 4090", probe(bf16_tflops=330.0))
typed("typed GPU class", "V12", "hardware", "before", "class", "name", value="5090")
typed("typed host", "V12", "hardware", "before", "host", "cpu_model", value="AMD Ryzen 5 3600")
typed("fingerprint left out", "V12", "hardware", "after", value=None)


@mutation("another card after the run", "V12", kind="draft")
def _(draft: Draft) -> None:
    draft.fingerprints()[1]["gpus"][0]["uuid_hash"] = "sha256:" + "5" * 64


@mutation("another host after the run", "V12", kind="draft", base="cpu")
def _(draft: Draft) -> None:
    draft.fingerprints()[1]["host"]["cpu_model"] = "Another CPU"


@mutation("a card twice as fast before the run as after", "V12", kind="draft")
def _(draft: Draft) -> None:
    draft.fingerprints()[1]["probes"]["gpu"]["bf16_tflops"] /= 1.4


@mutation("the machine not measured again", "V12 V27", kind="draft")
def _(draft: Draft) -> None:
    draft.events.remove(draft.of("fingerprint")[1])
