"""Memory and cores that this process may use: a container's limits count, not the host's."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Collection
from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")


def memory_limit(cgroup: Path = CGROUP) -> int:
    """Bytes of memory: the machine's, or the control group's limit where that is lower."""
    total = int(psutil.virtual_memory().total)
    limit = _read_bytes(cgroup / "memory.max")
    return total if limit is None else min(total, limit)


def available_memory(cgroup: Path = CGROUP) -> int:
    """Bytes that can still be allocated without swapping or an out-of-memory kill."""
    available = int(psutil.virtual_memory().available)
    limit, used = _read_bytes(cgroup / "memory.max"), _read_bytes(cgroup / "memory.current")
    if limit is None or used is None:
        return available
    # Cached file pages count as used, but the kernel reclaims them on demand.
    return max(min(available, limit - used + _reclaimable(cgroup)), 0)


def usable_cores(cgroup: Path = CGROUP, affinity: Collection[int] | None = None) -> list[int]:
    """The cores in `affinity` (default: this process' mask), as many as the CPU quota allows."""
    if sys.platform != "linux":
        return list(range(os.cpu_count() or 1))
    cores = sorted(os.sched_getaffinity(0) if affinity is None else affinity)
    try:
        quota, period = (cgroup / "cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cores
    if quota == "max":
        return cores
    return cores[: max(1, round(int(quota) / int(period)))]


def cuda_driver_present() -> bool:
    """Whether there may be CUDA devices. Cheap: importing torch to find out takes seconds."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def _reclaimable(cgroup: Path) -> int:
    try:
        lines = (cgroup / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    entries = dict(line.split(" ", 1) for line in lines)
    return int(entries.get("inactive_file", 0))


def _read_bytes(path: Path) -> int | None:
    """The number in a file of the control group; None for "max" or if the file is missing."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
