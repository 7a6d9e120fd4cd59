"""Limits of a control group, read from files like the kernel's own."""

from __future__ import annotations

import psutil
import pytest
from hagane.system import machine

GIB = 1 << 30


@pytest.fixture
def cgroup(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)

    def write(**files: str) -> None:
        for name, text in files.items():
            (tmp_path / f"memory.{name}").write_text(text)

    return write


def test_without_a_limit_the_machine_is_all_there_is(cgroup):
    assert machine.memory_limit() == psutil.virtual_memory().total
    cgroup(max="max\n", current="4096\n")
    assert machine.memory_limit() == psutil.virtual_memory().total
    assert machine.available_memory() == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_a_container_has_what_its_group_leaves(cgroup):
    cgroup(max=f"{GIB}\n", current=f"{GIB // 2}\n")
    assert machine.memory_limit() == GIB
    assert machine.available_memory() == GIB // 2
    cgroup(stat=f"anon 17\ninactive_file {GIB // 4}\nactive_file 5\n")
    assert machine.available_memory() == GIB // 2 + GIB // 4
    cgroup(current=f"{2 * GIB}\n")
    assert machine.available_memory() == 0


@pytest.mark.parametrize(
    ("quota", "count"), [(None, 4), ("max 100000", 4), ("250000 100000", 2), ("5000 100000", 1)]
)
def test_cores_are_those_of_the_affinity_within_the_quota(tmp_path, monkeypatch, quota, count):
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {7, 2, 3, 5})
    if quota is not None:
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert machine.usable_cores() == [2, 3, 5, 7][:count]
