"""Takes from a process all of the system but computing: no network, files, processes or signals.

A seccomp filter (Linux: seccomp(2)) lets through the calls that an interpreter needs to compute,
to read what is open and to write what is open; every other call fails with EPERM. It can neither be
lifted nor left, also by native code.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
import sys

# By architecture: its number for audits, and those of the calls that are allowed.
_MACHINES: dict[str, tuple[int, dict[str, int]]] = {
    "x86_64": (
        0xC000003E,
        {
            "read": 0, "write": 1, "close": 3, "fstat": 5, "lseek": 8, "mmap": 9, "mprotect": 10,
            "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15,
            "readv": 19, "writev": 20, "sched_yield": 24, "mremap": 25, "madvise": 28,
            "nanosleep": 35, "getitimer": 36, "setitimer": 38, "getpid": 39, "exit": 60,
            "gettimeofday": 96, "sigaltstack": 131, "gettid": 186, "futex": 202,
            "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230, "exit_group": 231,
            "getrandom": 318, "rseq": 334,
        },
    ),
    "aarch64": (
        0xC00000B7,
        {
            "close": 57, "lseek": 62, "read": 63, "write": 64, "readv": 65, "writev": 66,
            "fstat": 80, "exit": 93, "exit_group": 94, "futex": 98, "nanosleep": 101,
            "getitimer": 102, "setitimer": 103, "clock_gettime": 113, "clock_getres": 114,
            "clock_nanosleep": 115, "sched_yield": 124, "sigaltstack": 132, "rt_sigaction": 134,
            "rt_sigprocmask": 135, "rt_sigreturn": 139, "gettimeofday": 169, "getpid": 172,
            "gettid": 178, "brk": 214, "munmap": 215, "mremap": 216, "mmap": 222, "mprotect": 226,
            "madvise": 233, "getrandom": 278, "rseq": 293,
        },
    ),
}  # fmt: skip

# Of <linux/filter.h> and <linux/seccomp.h>.
_LOAD, _EQUAL, _LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER, _ARCHITECTURE = 0, 4
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
# Calls of another ABI on the same machine have this bit.
_X32 = 0x40000000
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _FILTER_MODE = 22, 38, 2


class LockdownError(Exception):
    """This system cannot confine a process."""


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def lock_down() -> None:
    """Confine this process from now on, for good. Raises LockdownError where it cannot be."""
    machine = _MACHINES.get(platform.machine())
    if not sys.platform.startswith("linux") or machine is None:
        raise LockdownError(
            "programs of strangers are confined by seccomp, which needs Linux on x86-64 or ARM64"
        )
    code = _assemble(*machine)
    program = _Program(len(code) // 8, code)
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _FILTER_MODE, ctypes.byref(program), 0, 0),
    ):
        if libc.prctl(*arguments):
            reason = errno.errorcode.get(ctypes.get_errno(), "an error")
            raise LockdownError(f"seccomp is refused by this system ({reason})")


def _assemble(architecture: int, allowed: dict[str, int]) -> bytes:
    """The filter: instructions of code, jumps if true and if false, and an operand."""
    numbers = sorted(allowed.values())
    lines = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        # Past all comparisons, to the refusal.
        (_LEAST, len(numbers), 0, _X32),
    ]
    for place, number in enumerate(numbers):
        # To the permission, which follows the refusal.
        lines.append((_EQUAL, len(numbers) - place, 0, number))
    lines += [(_RETURN, 0, 0, _ERRNO | errno.EPERM), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)
