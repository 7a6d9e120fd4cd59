"""Runs programs of strangers: what comes with models and adapters, such as regular expressions.

Each call runs in a worker process with bounded processor time and memory. A program that takes more
loses its worker, and only its own caller gets the error:

    sandbox = Sandbox(seconds=2.0, memory=512 << 20)
    found = sandbox.call("hagane.lora.targets:resolve_fields", fields, modules)
"""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from functools import cache
from typing import Any

# Answers, in bytes: far more than any prompt.
_LONGEST_ANSWER = 64 << 20
# Of the environment. The rest, keys among it, is none of a stranger's business.
_PASSED = ("PATH", "LANG", "LC_ALL", "TZ", "SYSTEMROOT")
_LENGTH = struct.Struct("<I")


class SandboxError(Exception):
    """The program failed; the message is its own."""


class SandboxLimitError(SandboxError):
    """The program took more processor time or memory than it may."""


class Sandbox:
    """Up to `processes` workers, started when needed and kept. Thread safe; calls block.

    A call may take `seconds` of processor time, and a worker `memory` bytes of addresses more than
    it has when it starts. Arguments and results are JSON. `confined` names a module that is
    imported first; after that the worker has neither network nor files (see `lockdown`).
    """

    def __init__(
        self,
        *,
        processes: int = 4,
        seconds: float = 2.0,
        memory: int = 512 << 20,
        confined: str = "",
    ) -> None:
        self.seconds, self.memory, self.confined = seconds, memory, confined
        self._free = threading.Semaphore(processes)
        self._idle: list[_Worker] = []

    def call(self, function: str, *arguments: Any) -> Any:
        """Call `module:function` with `arguments`; returns its result.

        Raises SandboxError with the message of what the function raised, or SandboxLimitError.
        """
        try:
            request = json.dumps([function, *arguments], separators=(",", ":")).encode()
        except (RecursionError, TypeError, ValueError) as error:
            raise SandboxError(f"its arguments cannot be sent: {error}") from None
        with self._free:
            worker = self._take()
            answer = None
            try:
                answer = worker.ask(request)
            finally:
                if answer is None:
                    worker.kill()
                else:
                    self._idle.append(worker)
        if answer is None:
            raise SandboxLimitError(self._death(worker.process.returncode))
        result = json.loads(answer)
        if "error" in result:
            raise SandboxError(result["error"])
        return result["value"]

    def warm(self) -> None:
        """Start a worker if there is none, without waiting for it."""
        if not self._idle:
            self._idle.append(_Worker(self.seconds, self.memory, self.confined))

    def close(self) -> None:
        """End the idle workers."""
        while self._idle:
            self._idle.pop().kill()

    def _take(self) -> _Worker:
        while self._idle:
            try:
                worker = self._idle.pop()
            except IndexError:
                break
            if worker.process.poll() is None:
                return worker
        return _Worker(self.seconds, self.memory, self.confined)

    def _death(self, status: int) -> str:
        if sys.platform != "win32" and status in (-signal.SIGPROF, -signal.SIGALRM):
            return f"it took more than {self.seconds:g} s of processor time"
        if sys.platform != "win32" and status == -signal.SIGSEGV:
            return "it is nested too deeply, or broke its process"
        return f"it took more than {self.memory >> 20} MiB of memory, or ended its process"


class _Worker:
    """One process, which answers one request after the other."""

    def __init__(self, seconds: float, memory: int, confined: str) -> None:
        environment = {key: os.environ[key] for key in _PASSED if key in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        environment["TOKENIZERS_PARALLELISM"] = "false"
        self.process = subprocess.Popen(  # noqa: S603 - this interpreter
            [
                *(sys.executable, "-P", "-m", "hagane.system.sandbox_worker"),
                *(str(seconds), str(memory), confined),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            # The terminal's Ctrl-C is for the server.
            start_new_session=True,
        )

    def ask(self, request: bytes) -> bytes | None:
        """The answer; None where the worker ended."""
        reader, writer = self.process.stdout, self.process.stdin
        if reader is None or writer is None:
            return None
        try:
            writer.write(_LENGTH.pack(len(request)) + request)
            writer.flush()
        except BrokenPipeError:
            return None
        head = reader.read(_LENGTH.size)
        length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else 0
        answer = reader.read(length) if 0 < length <= _LONGEST_ANSWER else b""
        return answer if length and len(answer) == length else None

    def kill(self) -> None:
        """End the process; what it wrote is lost."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()


@cache
def shared_sandbox() -> Sandbox:
    """The workers of this process."""
    return Sandbox()
