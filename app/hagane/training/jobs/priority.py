"""Processes that run on what the server leaves over. Needs no torch."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

_LOWEST_NICE = 19


def step_back() -> None:
    """Give this process and the threads it will start the last claim on processor and memory.

    Called before anything starts a thread: on Linux the scheduling class is a thread's own, and
    inherited. Idle-class threads run where nothing else wants to; of all processes, this one is
    what the kernel ends first when memory runs out.
    """
    with contextlib.suppress(OSError):
        os.nice(_LOWEST_NICE)
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
