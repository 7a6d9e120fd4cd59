"""A thread for what requests wait for, alongside the engine's steps."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from hagane.system.errors import HaganeError
from hagane.system.machine import usable_cores

_P = ParamSpec("_P")
_T = TypeVar("_T")

# Of addresses; only what is used takes memory. Far more than a grammar took where it was tried.
_STACK_BYTES = 64 << 20


class BackgroundThread:
    """Runs calls one after the other, on any core, and yields to steps there.

    `wake` is called in the thread after each of them, to wake an engine that sleeps.
    """

    def __init__(self, name: str, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._pool = ThreadPoolExecutor(1, name, _let_steps_go_first, (usable_cores(),))
        before = threading.stack_size(_STACK_BYTES)
        try:
            self._pool.submit(int).result()
        finally:
            threading.stack_size(before)

    def submit(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Run a call after those submitted before."""
        future = self._pool.submit(call, *args, **kwargs)
        future.add_done_callback(lambda _: self._wake())
        return future


def failure(future: Future[_T]) -> str | None:
    """Why a call that is done has no result; None if it has one."""
    error = future.exception()
    if error is None or isinstance(error, HaganeError):
        return None if error is None else str(error)
    return f"it failed with {error!r}"


def _let_steps_go_first(cores: list[int]) -> None:
    if sys.platform.startswith("linux"):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        os.sched_setaffinity(0, cores)
