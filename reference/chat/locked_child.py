"""Runs one program that a model wrote, with nothing that could do harm: no network, no files to
write, no other process. Started by `reference.chat.programs` as a script of its own.

Standard input has a line with a word, then the program. The word is written back when the program
has ended by itself; a program that leaves early (`exit()`) has not passed its tests.

A filter in the kernel (seccomp) refuses every call that is not on the list below; opening a file
is allowed for reading alone. Limits hold memory, processor time and the size of files.
"""

import ctypes
import os
import platform
import resource
import struct
import sys
from typing import Any

MEMORY_BYTES = 512 * 2**20
CPU_S = 5
_NO_NEW_PRIVS, _SET_SECCOMP, _FILTER = 38, 22, 2  # prctl
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06  # BPF
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000 | 1, 0x80000000  # refuse: EPERM
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | 0o20000000
# What Python needs to compute and to import: memory, reading, time, its own signals and end.
# Name of the machine -> (AUDIT_ARCH, calls, {call that opens: place of its flags}).
_CALLS: dict[str, tuple[int, tuple[int, ...], dict[int, int]]] = {
    "x86_64": (
        0xC000003E,
        (
            *(
                0,
                1,
                3,
                4,
                5,
                6,
                7,
                8,
                9,
                10,
                11,
                12,
                13,
                14,
                15,
                16,
                17,
                19,
                20,
                21,
                24,
                25,
                28,
                32,
            ),
            *(35, 39, 60, 63, 72, 79, 89, 96, 97, 99, 102, 104, 107, 108, 110, 131, 186, 202, 204),
            *(217, 228, 229, 230, 231, 262, 267, 269, 273, 318, 332, 334, 439),
        ),
        {2: 1, 257: 2},
    ),
    "aarch64": (
        0xC00000B7,
        (
            *(17, 23, 25, 29, 48, 57, 61, 62, 63, 64, 65, 66, 67, 73, 78, 79, 80, 93, 94, 98, 99),
            *(101, 113, 114, 115, 123, 124, 132, 134, 135, 139, 160, 169, 172, 173, 174, 175, 176),
            *(177, 178, 179, 214, 215, 216, 222, 226, 233, 278, 291, 293, 439),
        ),
        {56: 2},
    ),
}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def _instructions(architecture: int, calls: tuple[int, ...], opens: dict[int, int]) -> bytes:
    code = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    for number, place in opens.items():
        code += [
            (_EQUAL, 0, 4, number),
            (_LOAD, 0, 0, _ARGUMENTS + 8 * place),
            (_ANY_BIT, 1, 0, _WRITES),
            (_RETURN, 0, 0, _ALLOW),
            (_RETURN, 0, 0, _REFUSE),
        ]
    for number in calls:
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    code.append((_RETURN, 0, 0, _REFUSE))
    return b"".join(struct.pack("<HBBI", *line) for line in code)


def lock_down() -> None:
    """Takes from this process what the program must not have.

    Raises:
        OSError: The kernel has no such filter, or this machine is of another architecture.
    """
    for limit, value in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_CPU, CPU_S),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 32),
    ):
        resource.setrlimit(limit, (value, value))
    if platform.machine() not in _CALLS or sys.byteorder != "little":
        raise OSError(f"no list of system calls for {platform.machine()}")
    code = _instructions(*_CALLS[platform.machine()])
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
    done = done or libc.prctl(_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0)
    if done:
        raise OSError(ctypes.get_errno(), "the kernel takes no filter of system calls")


def main() -> None:
    word = sys.stdin.buffer.readline()
    text = sys.stdin.buffer.read().decode("utf-8", "replace")
    answer = os.dup(1)
    os.dup2(2, 1)  # what the program prints is nobody's answer
    lock_down()
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(text, "program", "exec"), space)
    os.write(answer, word)


if __name__ == "__main__":
    main()
