"""Limits of a control group, read from files like the kernel's own."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from hagane.system.machine import available_memory, memory_limit, usable_cores

GIB = 1 << 30


def write(cgroup: Path, **files: str) -> None:
    for name, text in files.items():
        (cgroup / f"memory.{name}").write_text(text)


def test_without_a_limit_the_machine_is_all_there_is(tmp_path):
    assert memory_limit(tmp_path) == psutil.virtual_memory().total
    write(tmp_path, max="max\n", current="4096\n")
    assert memory_limit(tmp_path) == psutil.virtual_memory().total
    available = psutil.virtual_memory().available
    assert available_memory(tmp_path) == pytest.approx(available, rel=0.2)


def test_a_container_has_what_its_group_leaves(tmp_path):
    write(tmp_path, max=f"{GIB}\n", current=f"{GIB // 2}\n")
    assert memory_limit(tmp_path) == GIB
    assert available_memory(tmp_path) == GIB // 2
    write(tmp_path, stat=f"anon 17\ninactive_file {GIB // 4}\nactive_file 5\n")
    assert available_memory(tmp_path) == GIB // 2 + GIB // 4
    write(tmp_path, current=f"{2 * GIB}\n")
    assert available_memory(tmp_path) == 0


@pytest.mark.parametrize(
    ("quota", "count"), [(None, 4), ("max 100000", 4), ("250000 100000", 2), ("5000 100000", 1)]
)
def test_cores_are_those_of_the_affinity_within_the_quota(tmp_path, quota, count):
    if quota is not None:
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert usable_cores(tmp_path, {7, 2, 3, 5}) == [2, 3, 5, 7][:count]
