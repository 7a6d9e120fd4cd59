"""Works through batches, one of each owner at a time, while nothing else wants the engine.

A request of a batch is sent to the server's own routes at idle priority: the engine lets it stand
still while others run. New ones are started only while no other request runs or waits. Results are
written down as they come: after a crash a batch goes on with the requests that have none.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from starlette.types import ASGIApp

from hagane.api.internal import post
from hagane.api.openai.batch_input import (
    BatchError,
    BatchRequest,
    BatchResult,
    ResultLog,
    check_input,
    read_requests,
)
from hagane.api.serving import Serving
from hagane.store.batches import ADMINISTRATORS, UNFINISHED, StoredBatch
from hagane.store.database import strikes_all
from hagane.store.files import Files
from hagane.system.errors import NotFoundError
from hagane.system.loops import BackgroundLoop

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
_BUSY_SECONDS = 0.05
_MOST_AT_A_TIME = 16
_SAVE_SECONDS = 1.0
# Statuses after which a request is sent again: the server is full, or its engine starts.
_AGAIN = (429, 503)
_AGAIN_SECONDS = 0.5
_STOP_SECONDS = 0.5


class _BatchLostError(Exception):
    """Another server works on the batch: this one was not seen for too long."""


@dataclass(frozen=True)
class _Ending:
    """How a batch ends; `error` says why it fails."""

    status: str
    error: BatchError | None = None


_REVOKED = BatchError(
    "key_revoked", "The key of this batch was revoked, or has expired; what was done is kept.",
    None, 0,
)  # fmt: skip
_NO_ROOM = BatchError(
    "file_quota_exceeded",
    "The results take more than what is left to the files of this key (key_file_bytes): delete "
    "files, and send what is left again.",
    None, 0,
)  # fmt: skip


class BatchRunner:
    """Runs the batches of one server.

    Each API key has a lane, in which its batches run one after the other; lanes share the requests
    that run at a time. Nobody's limits or long batches keep others' waiting.
    """

    def __init__(self, app: ASGIApp, serving: Serving) -> None:
        self._app, self._serving = app, serving
        self._batches, self._files = serving.store.batches, serving.store.files
        self._most = max(1, min(_MOST_AT_A_TIME, serving.settings.max_sequences // 2))
        self._lanes: dict[str, asyncio.Task[None]] = {}
        self._sent = 0
        self._validating = asyncio.Lock()
        self.loop = BackgroundLoop("batches", self._round)

    async def stop(self) -> None:
        """Stand still, at the end of the server."""
        await self.loop.stop()
        await _end(self._lanes.values())

    async def _round(self) -> float:
        for owner, lane in tuple(self._lanes.items()):
            if lane.done():
                del self._lanes[owner]
                lane.result()
        batch = None
        if len(self._lanes) < self._most:
            batch = await asyncio.to_thread(self._batches.next, tuple(self._lanes))
        if batch is not None:
            self._lanes[batch.owner] = asyncio.create_task(self._advance(batch))
        elif self._lanes:
            await asyncio.wait(
                self._lanes.values(), timeout=_POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
        else:
            return _POLL_SECONDS
        return 0.0

    async def _advance(self, batch: StoredBatch) -> None:
        """Validate a batch, or run it to its end."""
        try:
            await (self._validate(batch) if batch.status == "validating" else self._run(batch))
        except Exception as error:
            if strikes_all(error):
                raise
            if not await asyncio.to_thread(self._batches.is_held, batch.id):
                logger.warning("batch %s is another server's now", batch.id)
                return
            logger.exception("batch %s fails by a fault of this program", batch.id)
            # The text may be what cannot be stored.
            message = f"{type(error).__name__}: {str(error)!a}; see the server's log."
            shown = BatchError("internal_error", message, None, 0).as_json()
            await self._move(batch, UNFINISHED, "failed", errors=[shown])

    async def _run(self, batch: StoredBatch) -> None:
        log = await asyncio.to_thread(ResultLog, self._log_path(batch))
        try:
            ending = await self._work(batch, log)
        finally:
            log.close()
        await self._finalize(batch, log, ending)

    def _log_path(self, batch: StoredBatch) -> Path:
        folder = self._serving.store.work_directory / "batches"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder / f"{batch.id}.log"

    async def _validate(self, batch: StoredBatch) -> None:
        path = await asyncio.to_thread(self._local, batch)
        if path is None:
            missing = BatchError("invalid_file", "The input file is gone.", None, 0)
            count, errors = 0, [missing]
        else:
            # One after the other: files are long, and Python reads one at a time anyway.
            async with self._validating:
                count, errors = await asyncio.to_thread(check_input, path, batch.endpoint)
        counts = {"total": count, "completed": 0, "failed": 0}
        after = "failed" if errors else "in_progress"
        shown = [error.as_json() for error in errors]
        await self._move(batch, ("validating",), after, counts=counts, errors=shown)

    def _local(self, batch: StoredBatch) -> Path | None:
        """The input file; None if it is gone."""
        try:
            path = self._files.local(batch.input_file)
        except NotFoundError:
            return None
        return path if path.is_file() else None

    async def _work(self, batch: StoredBatch, log: ResultLog) -> _Ending:
        """Send the requests that have no result yet; returns how the batch ends."""
        caller = self._caller(batch)
        if not self._serving.keys.honours(caller):
            return _Ending("failed", _REVOKED)
        account = self._serving.accounts[caller]
        running: set[asyncio.Task[None]] = set()
        path = await asyncio.to_thread(self._files.local, batch.input_file)
        requests = read_requests(path)
        saved = -_SAVE_SECONDS
        waiting = True
        try:
            while waiting or running:
                if not self._serving.keys.honours(caller):
                    return _Ending("failed", _REVOKED)
                if time.monotonic() - saved >= _SAVE_SECONDS:
                    saved = time.monotonic()
                    if (ending := await self._stopped(batch, log)) is not None:
                        return ending
                while waiting and self._has_room(len(running)) and account.spares(len(running)):
                    request = await asyncio.to_thread(_next, requests, log.done)
                    if request is None:
                        waiting = False
                    else:
                        running.add(asyncio.create_task(self._send(request, log, caller)))
                        # Begun, it is counted among those that are sent.
                        await asyncio.sleep(0)
                if running:
                    done, running = await asyncio.wait(
                        running, timeout=_BUSY_SECONDS, return_when=asyncio.FIRST_COMPLETED
                    )
                    for task in done:
                        task.result()
                elif waiting:
                    await asyncio.sleep(_BUSY_SECONDS)
        finally:
            await _end(running)
        return _Ending("completed")

    def _caller(self, batch: StoredBatch) -> str:
        """The label of the key in whose name the batch's requests are sent."""
        return batch.owner if batch.owner != ADMINISTRATORS else self._serving.keys.administrators

    def _has_room(self, own: int) -> bool:
        """Whether a batch with `own` requests may begin another: no more than its share.

        Nothing but requests of batches runs or waits then.
        """
        if own >= self._most // len(self._lanes) or self._sent >= self._most:
            return False
        stats = self._serving.client.stats
        return stats.running + stats.waiting <= self._sent and self._serving.client.state == "ready"

    async def _stopped(self, batch: StoredBatch, log: ResultLog) -> _Ending | None:
        """Save how far the batch is; how it ends if it is to go no further."""
        counts = {**batch.counts, "completed": log.completed, "failed": log.failed}
        if not await asyncio.to_thread(self._batches.is_held, batch.id):
            raise _BatchLostError(batch.id)
        unfinished = ("in_progress", "finalizing")
        if not await self._move(batch, unfinished, "in_progress", counts=counts):
            return _Ending("cancelled")
        found = await asyncio.to_thread(self._batches.get, batch.id)
        if time.time() > found.expires_at:
            return _Ending("expired")
        owner = batch.owner
        if owner != ADMINISTRATORS and log.bytes > await self._serving.file_room.left(owner):
            return _Ending("failed", _NO_ROOM)
        return None

    async def _send(self, request: BatchRequest, log: ResultLog, caller: str) -> None:
        self._sent += 1
        try:
            while True:
                answer = await post(self._app, request.url, request.as_json(), caller)
                if answer.status not in _AGAIN:
                    break
                await asyncio.sleep(_AGAIN_SECONDS)
        finally:
            self._sent -= 1
        if answer.status == HTTPStatus.UNAUTHORIZED:
            # The key was revoked meanwhile, which ends the batch: this request was not made.
            return
        identity = answer.headers.get("x-request-id")
        log.add(
            BatchResult(request.number, request.custom_id, answer.status, identity, answer.body)
        )

    async def _finalize(self, batch: StoredBatch, log: ResultLog, ending: _Ending) -> None:
        """Write the files of results, and end the batch."""
        current = ("in_progress", "finalizing", "cancelling")
        if ending.status != "cancelled":
            await self._move(batch, current, "finalizing")
        files = await asyncio.to_thread(self._write, batch, log, ending.status)
        counts = {**batch.counts, "completed": log.completed, "failed": log.failed}
        errors = [] if ending.error is None else [ending.error.as_json()]
        await self._move(batch, current, ending.status, counts=counts, errors=errors, **files)
        log.path.unlink(missing_ok=True)

    def _write(self, batch: StoredBatch, log: ResultLog, ending: str) -> dict[str, str | None]:
        if ending == "expired":
            self._fail_rest(batch, log)
        return {
            "output_file": _store(self._files, batch, log, succeeded=True),
            "error_file": _store(self._files, batch, log, succeeded=False),
        }

    def _fail_rest(self, batch: StoredBatch, log: ResultLog) -> None:
        error = {
            "code": "batch_expired",
            "message": "This request was not run before the batch's completion window ended.",
        }
        with contextlib.closing(ResultLog(log.path)) as more:
            for request in read_requests(self._files.local(batch.input_file)):
                if request.number not in more.done:
                    more.add(BatchResult(request.number, request.custom_id, None, None, b"", error))
            log.failed = more.failed

    async def _move(
        self, batch: StoredBatch, before: tuple[str, ...], after: str, **changes: object
    ) -> bool:
        now = int(time.time())
        return await asyncio.to_thread(
            lambda: self._batches.move(batch.id, before, after, now, **changes)
        )


def _next(requests: Iterator[BatchRequest], done: set[int]) -> BatchRequest | None:
    return next((request for request in requests if request.number not in done), None)


def _store(files: Files, batch: StoredBatch, log: ResultLog, *, succeeded: bool) -> str | None:
    """Store one of the two files of results; None where it would be empty."""
    if not (log.completed if succeeded else log.failed):
        return None
    kind = "output" if succeeded else "error"
    with files.upload() as upload:
        for line in log.lines(succeeded=succeeded):
            upload.write(line)
        return upload.finish(f"{batch.id}_{kind}.jsonl", "batch_output", batch.owner).id


async def _end(tasks: Iterable[asyncio.Task[None]]) -> None:
    ending = set(tasks)
    while ending:
        # Again and again: a task may await what swallows a cancellation.
        for task in ending:
            task.cancel()
        done, ending = await asyncio.wait(ending, timeout=_STOP_SECONDS)
        # Nobody else looks at what they raised.
        await asyncio.gather(*done, return_exceptions=True)
