"""What a job goes on from, as an object that its next worker finds on whichever machine it runs.

A run resumes from its state bit for bit, so that any of its states will do: the one that was stored
last, even if a worker that had lost the job stored it.
"""

from __future__ import annotations

import logging
import shutil
import tarfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from hagane.store.jobs import Event, Job, Jobs
from hagane.store.store import Store
from hagane.system.errors import HaganeError, NotFoundError
from hagane.system.loops import Backoff
from hagane.training.reinforce.spec import read_spec

if TYPE_CHECKING:
    from hagane.store.blobs import Blobs

logger = logging.getLogger(__name__)

_FOLDER = "job-states"
# Between attempts that fail: each may take most of a minute, in which the run stands still.
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 60.0, 900.0
# After so long without a resumption, one that failed begins again where its machine is lost, too.
_KEPT_SECONDS = 30 * 86_400


class StateMirror:
    """The `directory` of the job `job_id` in `blobs`, where it has a state."""

    def __init__(self, blobs: Blobs, job_id: str, directory: Path) -> None:
        self._blobs, self._directory = blobs, directory
        self._name = f"{_FOLDER}/{job_id}"
        self._stored: dict[str, int] = {}
        # When it is tried again after it failed, by `time.monotonic`.
        self._again_at: float | None = None
        self._backoff = Backoff(_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS)

    def fetch(self) -> None:
        """Fill the directory with what was stored last, if anything was.

        Raises StoreUnavailableError, DiskFullError.
        """
        archive, partial = self._beside("tar"), self._beside("partial")
        try:
            try:
                self._blobs.get(self._name, archive)
            except NotFoundError:
                return
            with tarfile.open(archive) as files:
                files.extractall(partial, filter="data")
            shutil.rmtree(self._directory, ignore_errors=True)
            partial.replace(self._directory)
            logger.info("the job goes on from the state that was stored")
        finally:
            archive.unlink(missing_ok=True)
            shutil.rmtree(partial, ignore_errors=True)
        self._stored = self._states()

    def keep(self) -> None:
        """Store the directory, if its state has changed. Raises HaganeError, OSError."""
        states = self._states()
        if not states or states == self._stored:
            return
        archive = self._beside("tar")
        try:
            with tarfile.open(archive, "w") as files:
                files.add(self._directory, ".", filter=_whole)
            self._blobs.put(self._name, archive)
        finally:
            archive.unlink(missing_ok=True)
        self._stored = states

    def attempt(self, *, at_once: bool) -> Event | None:
        """As `keep`, but what fails is an event: only where this machine is lost is it needed.

        Then it is tried again after a while, or `at_once`. The event tells a change.
        """
        failed = self._again_at is not None
        if self._again_at is not None and not at_once and time.monotonic() < self._again_at:
            return None
        try:
            self.keep()
        except (HaganeError, OSError) as error:
            self._again_at = time.monotonic() + self._backoff.next()
            text = f"The state could not be stored for other machines: {error}"
            logger.warning(text)
            event = Event(f"{text} The job goes on; elsewhere it would from an older one.", "warn")
            return None if failed else event
        self._again_at = None
        self._backoff.reset()
        return Event("The state is stored for other machines again") if failed else None

    def forget(self) -> None:
        """Remove it: the job is over. Raises StoreUnavailableError."""
        self._blobs.delete(self._name)

    def _states(self) -> dict[str, int]:
        found = sorted(self._directory.glob("**/state/*"))
        return {str(path): path.stat().st_mtime_ns for path in found if path.suffix != ".partial"}

    def _beside(self, suffix: str) -> Path:
        return self._directory.parent / f".{self._directory.name}.{uuid.uuid4().hex[:8]}.{suffix}"


def state_mirror(store: Store, job: Job) -> StateMirror | None:
    """Where workers of other machines find the state of a job; None where it stays on this one.

    A state of all weights does: it is as large as the model, which stays as well.
    """
    if store.blobs is None or job.kind == "pretraining" or read_spec(job.spec).full:
        return None
    return StateMirror(store.blobs, job.id, store.job_directory(job.id))


def forget_states(blobs: Blobs, jobs: Jobs) -> None:
    """Remove the states of jobs that will not go on. Raises StoreUnavailableError."""
    for job_id in blobs.names(_FOLDER):
        try:
            job = jobs.get(job_id)
        except NotFoundError:
            # Perhaps of another database.
            continue
        since = time.time() - (job.finished_at or 0)
        if job.finished and (job.status != "failed" or since > _KEPT_SECONDS):
            blobs.delete(f"{_FOLDER}/{job_id}")


def _whole(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if entry.name.endswith(".partial") else entry
