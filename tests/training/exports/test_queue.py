"""One export at a time, in bounds, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys

import pytest
from hagane.system.errors import ConflictError, DiskFullError, NotFoundError
from hagane.training.exports.queue import ExportQueue
from hagane.training.exports.task import ExportTask
from hagane.training.jobs.inspection import spawn_process

from tests.support.engine import make_adapter


@pytest.fixture
def queue(tmp_path):
    return ExportQueue(tmp_path / "exports")


@pytest.fixture
def task(queue, tiny_model_dir, tmp_path):
    make_adapter(tmp_path / "adapter", tiny_model_dir, seed=1)

    def make(kind="adapter", model="a/b:c"):
        return ExportTask(base=tiny_model_dir, adapter=tmp_path / "adapter",
                          target=queue.target(model, kind), format=kind)  # fmt: skip

    return make


async def ended(export):
    async with asyncio.timeout(60):
        while export.status in ("queued", "running"):
            await asyncio.sleep(0.02)
    return export.status


def running(program):
    """Starts `program`, Python, in place of the one that writes exports."""

    async def spawn(*_, **streams):
        return await spawn_process(sys.executable, "-c", program, **streams)

    return spawn


def test_exports_follow_each_other_and_are_removed(queue, task, tmp_path):
    async def scenario():
        first, second = queue.add("a/b:c", task()), queue.add("a/b:c", task())
        assert (first.status, second.status) == ("queued", "queued")
        while first.status == "queued":
            await asyncio.sleep(0.01)
        assert second.status == "queued"
        assert await ended(second) == "succeeded"
        assert first.task.target.name == "a-b-c.zip"
        assert first.bytes == first.task.target.stat().st_size > 0
        assert [one.id for one in queue.list] == [second.id, first.id]
        await queue.delete(first.id)
        with pytest.raises(NotFoundError):
            queue.get(first.id)
        assert second.task.target.is_file()
        await queue.stop()

    asyncio.run(scenario())
    assert list((tmp_path / "exports").iterdir()) == []


def test_one_that_runs_is_stopped(queue, task, tmp_path):
    async def scenario():
        export = queue.add("x", task("model"))
        while export.status == "queued":
            await asyncio.sleep(0.01)
        await queue.delete(export.id)
        assert queue.list == []

    asyncio.run(scenario())
    assert list((tmp_path / "exports").iterdir()) == []


def test_a_failure_says_why_and_leaves_no_file(queue, task, tmp_path):
    async def scenario():
        broken = task()
        shutil.rmtree(tmp_path / "adapter")
        # Found out by the process that writes.
        (tmp_path / "adapter").mkdir()
        (tmp_path / "adapter/adapter_config.json").write_text("{")
        export = queue.add("x", broken.model_copy(update={"format": "gguf_adapter"}))
        assert await ended(export) == "failed"
        assert "adapter" in export.error["message"]
        assert not export.task.target.parent.exists()
        await queue.stop()

    asyncio.run(scenario())


def test_there_are_bounds(queue, task, tmp_path, monkeypatch):
    async def scenario():
        made = [queue.add("x", task()) for _ in range(16)]
        with pytest.raises(ConflictError, match="16 exports"):
            queue.add("x", task())
        for export in made[1:]:
            await queue.delete(export.id)
        with monkeypatch.context() as patch:
            usage = shutil.disk_usage(tmp_path)._replace(free=10)
            patch.setattr(shutil, "disk_usage", lambda path: usage)
            with pytest.raises(DiskFullError, match="free some"):
                queue.require_room(task())
        await queue.stop()

    (tmp_path / "exports").mkdir()
    asyncio.run(scenario())
    with pytest.raises(ConflictError, match="keeps nothing"):
        ExportQueue(None).target("x", "model")


def test_only_what_is_abandoned_is_swept(queue, tmp_path):
    for name, age in (("old", 100_000), ("new", 10)):
        folder = tmp_path / "exports" / name
        folder.mkdir(parents=True)
        then = folder.stat().st_mtime - age
        os.utime(folder, (then, then))
    queue.sweep()
    assert [path.name for path in (tmp_path / "exports").iterdir()] == ["new"]


@pytest.mark.parametrize("said", ["'no JSON'", "'x' * 100_000"])
def test_a_process_that_says_something_else_fails_its_export_alone(tmp_path, task, said, caplog):
    async def scenario():
        queue = ExportQueue(tmp_path / "exports", running(f"print({said})"))
        export = queue.add("x", task())
        assert await ended(export) == "failed"
        assert export.error["message"] == "The export failed: the log says why."
        assert not export.task.target.parent.exists()
        await queue.stop()

    asyncio.run(scenario())
    assert "Traceback" in caplog.text


NOISY = """
import os
from hagane.training.exports import worker
export = worker.export
def noisy(task, report):
    print("a library")
    os.write(1, b"and one in C\\n")
    export(task, report)
worker.export = noisy
worker.main()
"""


def test_what_libraries_print_is_no_progress(tmp_path, task):
    async def scenario():
        queue = ExportQueue(tmp_path / "exports", running(NOISY))
        export = queue.add("x", task())
        assert await ended(export) == "succeeded"
        await queue.stop()

    asyncio.run(scenario())


def test_exports_of_a_server_that_lives_are_not_swept(queue, task, tmp_path):
    async def scenario():
        export = queue.add("x", task())
        assert await ended(export) == "succeeded"
        folder = export.task.target.parent
        then = folder.stat().st_mtime - 100_000
        os.utime(folder, (then, then))
        another = ExportQueue(tmp_path / "exports")
        another.sweep()
        assert export.task.target.is_file()
        await queue.stop()

    asyncio.run(scenario())
