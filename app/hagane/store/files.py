"""Uploaded files: rows in the database, contents on disk, one file each.

Where servers share objects, the disk is a cache of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import sqlalchemy as sa

from hagane.store import tables
from hagane.store.batches import ADMINISTRATORS
from hagane.store.batches import UNFINISHED as UNFINISHED_BATCHES
from hagane.store.database import Database
from hagane.store.jobs import UNFINISHED
from hagane.store.paging import Page, Paging, select_page, without_sequence
from hagane.system.errors import ConflictError, HaganeError, NotFoundError
from hagane.system.files import commit, refused_when_full

if TYPE_CHECKING:
    from hagane.store.blobs import Blobs

_files = tables.files
_ABANDONED_SECONDS = 86400.0
_PARTIAL = ".partial"
# A file takes that much of the allowance of its owner at least.
_LEAST_BYTES = 4096
# Removed at a time, and how long after their end at the earliest.
MOST_EXPIRED, IN_HAND_SECONDS = 100, 60.0


@dataclass(frozen=True)
class StoredFile:
    """One file. `bytes` is its size, `sha256` the hash of its content, hexadecimal.

    `owner` is the label of the API key that it belongs to, or ADMINISTRATORS. From `expires_at` on
    (Unix seconds) it is there only for the jobs and batches that use it.
    """

    id: str
    filename: str
    purpose: str
    bytes: int
    sha256: str
    created_at: int
    owner: str = ADMINISTRATORS
    expires_at: int | None = None

    @property
    def expired(self) -> bool:
        """Whether its time has passed."""
        return self.expires_at is not None and self.expires_at <= time.time()


class Upload:
    """A file that is being received; others see it only after `finish`.

    Leaving the `with` block without `finish` removes the data.
    """

    def __init__(self, files: Files) -> None:
        self._files = files
        self.id = f"file-{uuid.uuid4().hex[:24]}"
        self.size = 0
        self._hash = hashlib.sha256()
        self._partial = files.path(self.id).with_suffix(_PARTIAL)
        with refused_when_full(self._partial.parent):
            self._partial.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._stream = self._partial.open("wb")

    def write(self, data: bytes) -> None:
        """Append `data`. Raises DiskFullError."""
        with refused_when_full(self._partial.parent):
            self._stream.write(data)
        self._hash.update(data)
        self.size += len(data)

    def finish(
        self,
        filename: str,
        purpose: str,
        owner: str = ADMINISTRATORS,
        kept_seconds: int | None = None,
    ) -> StoredFile:
        """Make the file durable and list it, for `kept_seconds` or for ever.

        Raises DiskFullError, StoreUnavailableError.
        """
        with refused_when_full(self._partial.parent):
            self._stream.close()
            # Shared before it has its name here, by which it would stay if that failed.
            self._files.share(self.id, self._partial)
            commit(self._partial, self._files.path(self.id))
        now = int(time.time())
        expires = None if kept_seconds is None else now + kept_seconds
        stored = StoredFile(
            self.id, filename, purpose, self.size, self._hash.hexdigest(), now, owner, expires
        )
        self._files.add(stored)
        return stored

    def __enter__(self) -> Upload:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Closing writes the buffer, for which the disk may have no room; the file goes anyway.
        with contextlib.suppress(OSError):
            self._stream.close()
        self._partial.unlink(missing_ok=True)


class Files:
    """The uploaded files of a store; `folder` has their contents under their ids.

    With `blobs`, `folder` has those that this server has used. Where an `owner` is given, files of
    others do not exist.
    """

    def __init__(self, database: Database, folder: Path, blobs: Blobs | None = None) -> None:
        self._database = database
        self._folder = folder
        self._blobs = blobs

    @property
    def folder(self) -> Path:
        """Where contents are, which is made for the first."""
        return self._folder

    @property
    def shared(self) -> bool:
        """Whether other servers have the files as well, each in a place of its own."""
        return self._blobs is not None

    def path(self, file_id: str) -> Path:
        """Where the file's content is, or would be, on this machine."""
        return self._folder / file_id

    def local(self, file_id: str) -> Path:
        """The path of the file's content, which is fetched now if need be.

        Raises NotFoundError, StoreUnavailableError, DiskFullError, and HaganeError for content
        that is not what was uploaded.
        """
        path = self.path(file_id)
        if self._blobs is None or path.is_file():
            return path
        stored = self._find(file_id)
        partial = path.with_name(f"{file_id}.{uuid.uuid4().hex[:8]}{_PARTIAL}")
        try:
            with refused_when_full(self._folder):
                self._blobs.get(_object(file_id), partial)
                with partial.open("rb") as content:
                    if hashlib.file_digest(content, "sha256").hexdigest() != stored.sha256:
                        raise HaganeError(
                            f"The file '{file_id}' in {self._blobs.place} is not what was "
                            "uploaded: it was damaged or changed; upload it again."
                        )
                commit(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        return path

    def share(self, file_id: str, content: Path) -> None:
        """Let other servers have the file's content. Raises StoreUnavailableError."""
        if self._blobs is not None:
            self._blobs.put(_object(file_id), content)

    def upload(self) -> Upload:
        """Start to receive a file."""
        return Upload(self)

    def add(self, stored: StoredFile) -> None:
        """List a file whose content is complete on disk."""
        with self._database.write() as connection:
            connection.execute(_files.insert().values(**vars(stored)))

    def get(self, file_id: str, owner: str | None = None) -> StoredFile:
        """The file's entry. Raises NotFoundError, for what has expired, too."""
        found = self._find(file_id)
        if found.expired or owner not in (None, found.owner):
            raise _no_file(file_id)
        return found

    def has(self, file_id: str) -> bool:
        """Whether it is there, expired or not."""
        with self._database.read() as connection:
            query = sa.select(_files.c.id).where(_files.c.id == file_id)
            return connection.execute(query).scalar() is not None

    def _find(self, file_id: str) -> StoredFile:
        with self._database.read() as connection:
            row = connection.execute(sa.select(_files).where(_files.c.id == file_id)).mappings()
            found = row.one_or_none()
        if found is None:
            raise _no_file(file_id)
        return StoredFile(**without_sequence(found))

    def list(
        self, paging: Paging, purpose: str | None = None, owner: str | None = None
    ) -> Page[StoredFile]:
        """A page of files, optionally of one purpose. Raises InvalidRequestError as paging does."""
        wanted = ((_files.c.purpose, purpose), (_files.c.owner, owner))
        conditions = [column == value for column, value in wanted if value is not None]
        conditions.append(sa.or_(_files.c.expires_at.is_(None), _files.c.expires_at > time.time()))
        with self._database.read() as connection:
            return select_page(
                connection, _files, paging, lambda row: StoredFile(**row), *conditions
            )

    def used(self, owner: str) -> int:
        """Bytes that the files of an owner take, a small one as if it filled a block."""
        size = sa.case((_files.c.bytes < _LEAST_BYTES, _LEAST_BYTES), else_=_files.c.bytes)
        query = sa.select(sa.func.sum(size)).where(_files.c.owner == owner)
        with self._database.read() as connection:
            return int(connection.execute(query).scalar() or 0)

    def delete(self, file_id: str, owner: str | None = None) -> None:
        """Raises NotFoundError, or ConflictError while an unfinished job needs the file."""
        self.get(file_id, owner)
        self._remove(file_id)

    def expire(self) -> int:
        """Remove files whose time has passed, at most `MOST_EXPIRED`; returns how many there were.

        What an unfinished job or batch needs stays until that has finished.
        """
        # Nobody finds them any more; a request that had found one is over by now.
        over = time.time() - IN_HAND_SECONDS
        passed = sa.select(_files.c.id).where(
            _files.c.expires_at <= over, *(~sa.exists(user) for user in _users(_files.c.id))
        )
        with self._database.read() as connection:
            found = connection.execute(passed.order_by(_files.c.expires_at).limit(MOST_EXPIRED))
            ids = list(found.scalars())
        for file_id in ids:
            # First: what is left of it in a store that cannot be reached would never go.
            if self._blobs is not None:
                self._blobs.delete(_object(file_id))
            # Another server may have removed it.
            with contextlib.suppress(ConflictError):
                self._remove(file_id)
        return len(ids)

    def _remove(self, file_id: str) -> None:
        with self._database.write() as connection:
            for kind, user in zip(("job", "batch"), _users(file_id), strict=True):
                name = connection.execute(user).scalar()
                if name is not None:
                    raise ConflictError(
                        f"The file '{file_id}' is needed by the {kind} '{name}'; cancel the "
                        f"{kind}, or wait until it has finished.",
                        param="file_id",
                        code="file_in_use",
                    )
            connection.execute(_files.delete().where(_files.c.id == file_id))
        self.path(file_id).unlink(missing_ok=True)
        if self._blobs is not None:
            self._blobs.delete(_object(file_id))

    def sweep(self) -> None:
        """Remove the leftovers of uploads and deletions that a crash interrupted."""
        with self._database.read() as connection:
            known = set(connection.execute(sa.select(_files.c.id)).scalars())
        for path in self._folder.iterdir():
            # Whole files that a shared database lacks may be those of another one.
            if path.name in known or (self._database.shared and path.suffix != _PARTIAL):
                continue
            # Another server of the same directory may be receiving a file right now, or sweeping.
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - _ABANDONED_SECONDS:
                    path.unlink()


def _users(file_id: str | sa.ColumnElement[str]) -> tuple[sa.Select[tuple[str]], ...]:
    """The unfinished jobs that need a file, and the unfinished batches."""
    jobs, batches = tables.jobs, tables.batches
    # What pretraining reads is known by its path alone.
    files = sa.or_(
        jobs.c.training_file == file_id,
        jobs.c.validation_file == file_id,
        sa.cast(jobs.c.spec, sa.Text).contains(file_id),
    )
    return (
        sa.select(jobs.c.id).where(jobs.c.status.in_(UNFINISHED), files),
        sa.select(batches.c.id).where(
            batches.c.status.in_(UNFINISHED_BATCHES), batches.c.input_file == file_id
        ),
    )


def _no_file(file_id: str) -> NotFoundError:
    return NotFoundError(f"There is no file '{file_id}'.", param="file_id")


def _object(file_id: str) -> str:
    return f"files/{file_id}"
