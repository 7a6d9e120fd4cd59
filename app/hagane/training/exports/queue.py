"""Exports of this server: one is written at a time, each by a process of its own.

A finished one is a file in the data directory until it is deleted or the server ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import shutil
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

from hagane.system.errors import ConflictError, DiskFullError, NotFoundError
from hagane.training.exports.task import ExportFormat, ExportTask
from hagane.training.jobs.inspection import Spawn, exit_reason, spawn_process

logger = logging.getLogger(__name__)

Status = Literal["queued", "running", "succeeded", "failed"]

_MOST = 16
# Left by a server that was killed; another server may share the directory.
_ABANDONED_SECONDS = 86_400.0
# In the folder of an export, locked as long as its server lives.
_LOCK = ".lock"
_TARGET_SUFFIXES = {"adapter": ".zip", "model": ".zip", "gguf": ".gguf", "gguf_adapter": ".gguf"}


@dataclass
class Export:
    """One export and how far it is. `progress` is the share of `stage`, where that is known."""

    model: str
    task: ExportTask
    status: Status = "queued"
    stage: str | None = None
    progress: float | None = None
    error: dict[str, str] | None = None
    bytes: int | None = None
    id: str = field(default_factory=lambda: f"export-{uuid.uuid4().hex}")
    created_at: int = field(default_factory=lambda: int(time.time()))


class ExportQueue:
    """The exports of one server, whose files are in `folder`; None where nothing is kept."""

    def __init__(self, folder: Path | None, spawn: Spawn = spawn_process) -> None:
        self._folder, self._spawn = folder, spawn
        self._exports: dict[str, Export] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._locks: dict[str, BinaryIO] = {}
        self._one_at_a_time = asyncio.Lock()

    @property
    def list(self) -> list[Export]:
        """All, newest first."""
        return [*reversed(self._exports.values())]

    def get(self, export_id: str) -> Export:
        """Raises NotFoundError."""
        if (found := self._exports.get(export_id)) is None:
            raise NotFoundError(f"There is no export '{export_id}'.", param="export_id")
        return found

    def target(self, model: str, kind: ExportFormat) -> Path:
        """A new path for the file of an export. Raises ConflictError where nothing is kept."""
        if self._folder is None:
            raise ConflictError("This server keeps nothing: start it with an admin key.")
        name = "".join(c if c.isalnum() or c in "._-" else "-" for c in model).strip(".-")
        file = f"{name[:100] or 'model'}{_TARGET_SUFFIXES[kind]}"
        return self._folder / uuid.uuid4().hex / file

    def add(self, model: str, task: ExportTask) -> Export:
        """Start an export, or queue it behind others. Raises ConflictError for too many."""
        if len(self._exports) >= _MOST:
            raise ConflictError(f"There are {_MOST} exports already; delete one of them first.")
        made = Export(model, task)
        self._exports[made.id] = made
        self._tasks[made.id] = asyncio.create_task(self._run(made), name=made.id)
        return made

    async def delete(self, export_id: str) -> None:
        """Stop it if it has not ended, and remove its file. Raises NotFoundError."""
        export = self.get(export_id)
        del self._exports[export_id]
        task = self._tasks.pop(export_id)
        task.cancel()
        await asyncio.wait({task})
        await self._remove(export)

    def sweep(self) -> None:
        """Remove what servers that were killed have left."""
        if self._folder is None or not self._folder.is_dir():
            return
        for path in self._folder.iterdir():
            old = path.stat().st_mtime < time.time() - _ABANDONED_SECONDS
            if old and not _is_locked(path):
                shutil.rmtree(path, ignore_errors=True)

    async def stop(self) -> None:
        """Stop and remove all."""
        for export_id in [*self._exports]:
            await self.delete(export_id)

    def require_room(self, task: ExportTask) -> None:
        """Raises DiskFullError, or ModelError for files that cannot be read. Takes time."""
        if self._folder is None:
            return
        free, needed = shutil.disk_usage(self._folder.parent).free, task.needed_bytes()
        if needed > free:
            raise DiskFullError(
                f"This takes about {needed / 1e9:.1f} GB of disk, and {free / 1e9:.1f} GB are "
                f"free in {self._folder.parent}: free some, then try again."
            )

    async def _run(self, export: Export) -> None:
        try:
            async with self._one_at_a_time:
                export.status = "running"
                folder = export.task.target.parent
                self._locks[export.id] = await asyncio.to_thread(_make_locked, folder)
                await self._write(export)
        except OSError as error:
            _note(export, "internal_error", str(error))
        except Exception:
            logger.exception("%s of %s failed", export.id, export.model)
            _note(export, "internal_error", "The export failed: the log says why.")
        export.stage = export.progress = None
        if export.error is not None:
            await self._remove(export)
        export.status = "succeeded" if export.error is None else "failed"

    async def _remove(self, export: Export) -> None:
        await asyncio.to_thread(shutil.rmtree, export.task.target.parent, ignore_errors=True)
        if (lock := self._locks.pop(export.id, None)) is not None:
            lock.close()

    async def _write(self, export: Export) -> None:
        pipe = asyncio.subprocess.PIPE
        command = (sys.executable, "-m", "hagane.training.exports.worker")
        process = await self._spawn(*command, stdin=pipe, stdout=pipe)
        try:
            assert process.stdin is not None  # noqa: S101 - a pipe, as asked for
            process.stdin.write(export.task.model_dump_json().encode())
            process.stdin.close()
            await self._follow(export, process)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def _follow(self, export: Export, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None  # noqa: S101 - a pipe, as asked for
        async for line in process.stdout:
            said = json.loads(line)
            if "error" in said:
                _note(export, said["code"], said["error"])
            else:
                export.stage, export.progress = said["stage"], said["progress"]
        code = await process.wait()
        if code and export.error is None:
            _note(export, "export_failed", f"The export ended with {exit_reason(code)}.")
        if export.error is None:
            size = await asyncio.to_thread(export.task.target.stat)
            export.bytes = size.st_size


def _make_locked(folder: Path) -> BinaryIO:
    """Make `folder`; it is locked until the file that is returned is closed."""
    folder.mkdir(parents=True)
    lock = (folder / _LOCK).open("wb")
    # Some shared file systems have no locks: there the age alone decides.
    with contextlib.suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return lock


def _is_locked(folder: Path) -> bool:
    try:
        with (folder / _LOCK).open("r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _note(export: Export, code: str, message: str) -> None:
    logger.warning("%s of %s failed: %s", export.id, export.model, message)
    export.error = {"code": code, "message": message}
