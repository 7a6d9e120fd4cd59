"""Run a process on the time and memory that the server leaves free. Needs no torch."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

_LOWEST_NICE = 19


def step_back() -> None:
    """Give this process and its future threads the lowest priority for processor and memory.

    Call it before any thread starts: on Linux the scheduling class belongs to a thread, and new
    threads inherit it. Idle-class threads run when a core has nothing else to do, and the kernel
    kills this process first when memory runs out.
    """
    with contextlib.suppress(OSError):
        os.nice(_LOWEST_NICE)
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
