"""The models that a server is fetching from the hub, and the last ones that it has fetched."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from hagane.system.errors import ConflictError, HaganeError, NotFoundError, RateLimitError
from hagane.text.pulling import Pull, PullCancelledError

logger = logging.getLogger(__name__)

# Of one connection each: more only share its speed.
_MOST_RUNNING = 2
_KEPT_FINISHED = 32

Status = Literal["running", "cancelling", "succeeded", "failed", "cancelled"]


@dataclass(eq=False)
class ModelPull:
    """A pull as admins see it. `error` is the reason of one that failed."""

    pull: Pull
    id: str = field(default_factory=lambda: f"pull-{uuid.uuid4().hex}")
    status: Status = "running"
    error: str | None = None
    created_at: int = field(default_factory=lambda: int(time.time()))
    finished_at: int | None = None
    task: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.finished_at is None

    def describe(self) -> dict[str, Any]:
        """The object on the wire."""
        model = self.pull.model
        return {
            "id": self.id,
            "object": "admin.model_pull",
            "model": model.id,
            "name": self.pull.name,
            "commit": model.commit,
            "status": self.status,
            "files": len(model.files),
            "received_bytes": self.pull.received,
            "total_bytes": self.pull.total,
            "error": self.error,
            "created_at": self.created_at,
            "finished_at": self.finished_at,
        }


class ModelPulls:
    """All pulls of one server, by id; the oldest that ended are forgotten."""

    def __init__(self) -> None:
        self._pulls: OrderedDict[str, ModelPull] = OrderedDict()

    def __iter__(self) -> Iterator[ModelPull]:
        """The newest first."""
        return reversed(self._pulls.values())

    def find(self, pull_id: str) -> ModelPull:
        """Raises NotFoundError."""
        found = self._pulls.get(pull_id)
        if found is None:
            raise NotFoundError(f"There is no pull '{pull_id}'.", param="pull_id")
        return found

    def require_room(self, pull: Pull) -> None:
        """Raises RateLimitError while others are pulled, ConflictError for the same name or files.

        Two that write one file would damage it.
        """
        running = [one for one in self if one.running]
        for one in running:
            if one.pull.name == pull.name or one.pull.folder == pull.folder:
                raise ConflictError(
                    f"'{one.pull.name}' is being pulled already: see {one.id}.",
                    param="name",
                    code="pull_running",
                )
        if len(running) >= _MOST_RUNNING:
            raise RateLimitError(
                f"{_MOST_RUNNING} models are being pulled, as many as may be: wait, or cancel one.",
                retry_after=5.0,
            )

    def start(self, pull: Pull) -> ModelPull:
        """Begin a pull in the background. Raises as `require_room` does."""
        self.require_room(pull)
        started = ModelPull(pull)
        self._pulls[started.id] = started
        started.task = asyncio.create_task(self._run(started))
        return started

    def cancel(self, pull: ModelPull) -> None:
        """Have a pull end soon; one that has ended stays as it is."""
        if pull.running:
            pull.status = "cancelling"
            pull.pull.cancel()

    def interrupt(self) -> None:
        """Have all end soon; what they have fetched is there for the next server."""
        for one in self:
            if one.running:
                one.pull.interrupt()

    async def stop(self) -> None:
        """End all; one that waits for its hub may take as long as that."""
        self.interrupt()
        running = [one.task for one in self if one.running and one.task is not None]
        await asyncio.gather(*running)

    async def _run(self, started: ModelPull) -> None:
        try:
            await asyncio.to_thread(started.pull.run)
            started.status = "succeeded"
        except PullCancelledError:
            started.status = "cancelled"
        except HaganeError as error:
            started.status, started.error = "failed", str(error)
            logger.warning("%s could not be pulled: %s", started.pull.model.id, error)
        except Exception:
            started.status, started.error = "failed", "The pull failed: the log says why."
            logger.exception("%s could not be pulled", started.pull.model.id)
        finally:
            started.finished_at = int(time.time())
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        finished = [one.id for one in self._pulls.values() if not one.running]
        for pull_id in finished[: max(len(finished) - _KEPT_FINISHED, 0)]:
            del self._pulls[pull_id]
