"""Pulls: models fetched from the hub into a store of this machine, piece by piece.

Files arrive in a hidden folder of the store and become a model when all of them are there and equal
what the hub announced. What a pull has fetched before it failed is there for the next one.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hagane.system.errors import ConflictError, DiskFullError, HaganeError, ModelError
from hagane.system.files import commit_folder, refused_when_full
from hagane.text.hub_files import Digest, HubFile, HubModel

if TYPE_CHECKING:
    import httpx

# Of a store: unfinished pulls, and models on their way out. None of its folders is a model.
HIDDEN_FOLDER = ".pulls"
_TRIES = 5
_TIMEOUT_SECONDS = 30.0
_PIECE = 1 << 20
# Left free for databases, logs and the checkpoints of jobs.
_SPARE_BYTES = 1 << 30
# What a pull left may wait for the next one; what was taken out of a store waits for nobody.
_KEPT_SECONDS = 7 * 86_400.0
REMOVED = "removed-"


class PullCancelledError(HaganeError):
    """Somebody asked the pull to end."""


@dataclass
class Pull:
    """One model on its way into `store`, as the directory `name`. `received` is in bytes."""

    model: HubModel
    store: Path
    name: str
    received: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _kept: bool = False

    @property
    def total(self) -> int:
        """The bytes of all files."""
        return sum(file.size for file in self.model.files)

    @property
    def target(self) -> Path:
        """Where the model will be."""
        return self.store / self.name

    @property
    def folder(self) -> Path:
        """Where the files arrive, which depends on them and not on the model's name."""
        key = f"{self.model.repository}@{self.model.commit}/{self.model.files[0].path}"
        return self.store / HIDDEN_FOLDER / hashlib.sha256(key.encode()).hexdigest()[:32]

    def require_room(self) -> None:
        """Raises DiskFullError where the store's disk has not enough for all of it."""
        self.store.mkdir(parents=True, exist_ok=True)
        missing = self.total - sum(_size(path) for path in self.folder.rglob("*"))
        free = shutil.disk_usage(self.store).free
        if missing + _SPARE_BYTES > free:
            raise DiskFullError(
                f"The model takes {missing / 1e9:.2f} GB more and the disk of {self.store} has "
                f"{free / 1e9:.2f} GB free, of which {_SPARE_BYTES / 1e9:.1f} GB are to stay free."
            )

    def cancel(self) -> None:
        """Have `run` end soon, and leave nothing."""
        self._stop.set()

    def interrupt(self) -> None:
        """As `cancel`, but leave what has come for the next pull of the same files."""
        self._kept = True
        self._stop.set()

    def run(self) -> Path:
        """Fetch what is missing, and return the model's directory.

        Raises ModelError for a hub that cannot be read or bytes that are not as announced,
        ConflictError where the directory was made meanwhile, DiskFullError, PullCancelledError.
        """
        try:
            with refused_when_full(self.store), _client() as client:
                for file in self.model.files:
                    self._fetch(client, file)
                commit_folder(self.folder, self.target)
        except PullCancelledError:
            if not self._kept:
                shutil.rmtree(self.folder, ignore_errors=True)
            raise
        except OSError as error:
            raise ModelError(f"{self.target} cannot be written: {error}") from None
        if self.folder.is_dir():
            raise ConflictError(
                f"{self.target} was made meanwhile: pull the model under another name. Its files "
                "have come and wait for that."
            )
        return self.target

    def _fetch(self, client: httpx.Client, file: HubFile) -> None:
        """Have one file in the folder; a connection that breaks off is made again."""
        final = self.folder / file.place
        if final.is_file() and final.stat().st_size == file.size:
            self.received += file.size
            return
        final.parent.mkdir(parents=True, exist_ok=True)
        partial = final.with_name(f"{final.name}.partial")
        for attempt in range(_TRIES):
            self._require_wanted()
            before = self.received
            try:
                digest = self._continue(client, file, partial)
                break
            except ModelError:
                self.received = before
                if attempt == _TRIES - 1:
                    raise
                # The wait ends at once where the pull is cancelled.
                self._stop.wait(attempt)
        # Nothing has to be fetched of an empty file.
        partial.touch()
        if _size(partial) != file.size or digest.hexdigest() != file.digest:
            partial.unlink()
            raise ModelError(f"{file.path} was damaged on its way and is removed: pull it again")
        partial.replace(final)

    def _continue(self, client: httpx.Client, file: HubFile, partial: Path) -> Digest:
        """Append to `partial` what it lacks; the digest of all of it. Raises ModelError."""
        import httpx

        digest, offset = file.hasher(), 0
        for piece in _pieces(partial):
            self._require_wanted()
            digest.update(piece)
            offset += len(piece)
        self.received += offset
        if offset >= file.size:
            return digest
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        try:
            with client.stream("GET", self.model.url(file), headers=headers) as answer:
                answer.raise_for_status()
                if offset and answer.status_code != 206:
                    digest, self.received = file.hasher(), self.received - offset
                    partial.unlink()
                with partial.open("ab") as out:
                    for piece in answer.iter_raw():
                        self._take(piece, out.tell(), file)
                        out.write(piece)
                        digest.update(piece)
        except httpx.HTTPError as error:
            raise ModelError(f"{file.path} could not be fetched: {_reason(error)}") from None
        return digest

    def _require_wanted(self) -> None:
        if self._stop.is_set():
            raise PullCancelledError("The pull was cancelled.")

    def _take(self, piece: bytes, before: int, file: HubFile) -> None:
        self._require_wanted()
        if before + len(piece) > file.size:
            raise ModelError(f"{file.path} is longer than the {file.size} bytes announced")
        self.received += len(piece)


def sweep(store: Path) -> None:
    """Remove what a crash left of models taken out of `store`, and pulls that nobody goes on with.

    These are such that have had no byte for a week.
    """
    for path in [*(store / HIDDEN_FOLDER).glob("*")]:
        # Other servers may share the store, and have pulls that end meanwhile.
        with contextlib.suppress(OSError):
            latest = max(one.lstat().st_mtime for one in (path, *path.rglob("*")))
            if path.name.startswith(REMOVED) or latest < time.time() - _KEPT_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def _client() -> httpx.Client:
    # The library and the client take 8 MB, which a server of local models does without.
    import httpx
    from huggingface_hub import get_token

    headers = {"Accept-Encoding": "identity"}
    if token := get_token():
        headers["Authorization"] = f"Bearer {token}"
    return httpx.Client(headers=headers, timeout=_TIMEOUT_SECONDS, follow_redirects=True)


def _pieces(path: Path) -> Iterator[bytes]:
    if path.is_file():
        with path.open("rb") as stream:
            while piece := stream.read(_PIECE):
                yield piece


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _reason(error: httpx.HTTPError) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
