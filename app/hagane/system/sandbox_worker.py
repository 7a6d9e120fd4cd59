"""The worker process of `Sandbox`: reads a call, runs it within its limits, writes the answer.

    python -m hagane.system.sandbox_worker SECONDS MEMORY [MODULE]

Calls and answers are a length in four bytes, then JSON. Needs no torch.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import struct
import sys
from typing import Any, BinaryIO

from hagane.system.lockdown import LockdownError, lock_down

# On a busy machine a call waits for its processor time; that many times as long.
_PATIENCE = 20
_STACK_BYTES = 8 << 20
_LENGTH = struct.Struct("<I")


def main(seconds: float, memory: int, confined: str = "") -> None:
    """Serve until the other side closes; confined after the module `confined` is imported."""
    answers = os.fdopen(os.dup(1), "wb")
    # A program's output is not the answer.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    _limit_memory(memory)
    refusal = _confine(confined) if confined else None
    while head := sys.stdin.buffer.read(_LENGTH.size):
        (length,) = _LENGTH.unpack(head)
        _answer(sys.stdin.buffer.read(length), answers, seconds, refusal)


def _confine(module: str) -> str | None:
    """Why the process cannot be confined; None where it is from now on."""
    importlib.import_module(module)
    try:
        lock_down()
    except LockdownError as error:
        return str(error)
    return None


def _answer(request: bytes, answers: BinaryIO, seconds: float, refusal: str | None) -> None:
    _limit_time(seconds)
    try:
        if refusal is not None:
            raise LockdownError(refusal)
        function, *arguments = json.loads(request)
        module, _, name = function.partition(":")
        answer: dict[str, Any] = {
            "value": getattr(importlib.import_module(module), name)(*arguments)
        }
        encoded = json.dumps(answer, separators=(",", ":")).encode()
    except MemoryError:
        # The rest of the address space may be too little for the next call.
        os._exit(1)
    except Exception as error:
        encoded = json.dumps({"error": str(error) or type(error).__name__}).encode()
    _limit_time(0)
    answers.write(_LENGTH.pack(len(encoded)) + encoded)
    answers.flush()


def _limit_time(seconds: float) -> None:
    """After so much processor time the system ends this process, whatever it is doing."""
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_REAL, seconds * _PATIENCE)


def _limit_memory(memory: int) -> None:
    if not sys.platform.startswith("linux"):
        return
    import resource

    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - no import of pathlib
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # What passes here must not overflow the stack of a process that repeats it.
    _, most = resource.getrlimit(resource.RLIMIT_STACK)
    resource.setrlimit(resource.RLIMIT_STACK, (_STACK_BYTES, most))


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
