"""Files that several servers share: objects in a directory or an object store, through fsspec.

An object appears whole or not at all, and is never changed: its name is the id or the digest of its
content.
"""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from hagane.system.errors import (
    ConfigurationError,
    HaganeError,
    NotFoundError,
    StoreUnavailableError,
)
from hagane.system.files import commit, is_full
from hagane.system.installation import install_command

# s3fs: give up after seconds, so that a request that waits gets an answer. botocore tries twice,
# and so does s3fs: a store that takes connections and says nothing costs 40 s.
_S3 = {
    "config_kwargs": {
        "connect_timeout": 3, "read_timeout": 10, "retries": {"max_attempts": 1},
    },
    # Others' objects must be seen at once.
    "use_listings_cache": False,
    # The credentials are those of now.
    "skip_instance_cache": True,
}  # fmt: skip
# Of an upload: seconds, and bytes a second at least.
_UPLOAD_SECONDS, _SLOWEST = 40.0, 100_000.0
_EXTRAS = {"s3": "s3", "s3a": "s3"}
# Refused or impossible, and so it stays: nothing to wait for.
_LASTING = (PermissionError, ValueError, TypeError)
_USER = re.compile(r"//(?:[^/@]*:[^@]*|[^/@]*)@")


class Blobs:
    """The objects below `url`: a directory, or `s3://BUCKET/PREFIX` and what else fsspec knows.

    `place` is the address to show: without a user, a password and parameters. Raises
    ConfigurationError when it cannot be used.
    """

    def __init__(self, url: str) -> None:
        scheme = url.partition("://")[0] if "://" in url else "file"
        self.place = shown(url)
        self._secret = self.place != url
        try:
            options: dict[str, Any] = dict(_S3) if scheme in _EXTRAS else {}
            self._files, self._root = fsspec.core.url_to_fs(url, **options)
        except ImportError:
            known = install_command(_EXTRAS[scheme]) if scheme in _EXTRAS else None
            command = known or f"pip install 'fsspec[{scheme}]'"
            raise ConfigurationError(f"blob_url needs a package: {command}") from None
        except ValueError as error:
            raise self._unusable(error) from None
        self._local = scheme in ("file", "local")
        if hasattr(self._files, "retries"):
            self._files.retries = 2
        self._at_start(self._prepare)

    def probe(self) -> None:
        """Write an empty object and remove it. Raises ConfigurationError where that fails."""
        self._at_start(self._write_and_remove)

    def put(self, name: str, source: Path) -> None:
        """Store the content of `source` as `name`. Raises StoreUnavailableError."""
        with self._reported(name):
            target = self._path(name)
            if not self._local:
                # One request, or several of which the last makes the object visible.
                self._files.put_file(str(source), target, **self._bound(source))
                return
            partial = f"{target}.{uuid.uuid4().hex[:8]}.partial"
            self._files.makedirs(str(PurePosixPath(target).parent), exist_ok=True)
            self._files.put_file(str(source), partial)
            commit(Path(partial), Path(target))

    def get(self, name: str, target: Path) -> None:
        """Write the object to `target`. Raises NotFoundError, StoreUnavailableError."""
        with self._reported(name):
            self._files.get_file(self._path(name), str(target))

    def has(self, name: str) -> bool:
        """Whether the object is there. Raises StoreUnavailableError."""
        with self._reported(name):
            return bool(self._files.exists(self._path(name)))

    def names(self, folder: str) -> Sequence[str]:
        """The objects right below `folder`, by their names in it. Raises StoreUnavailableError."""
        try:
            with self._reported(folder):
                found = self._files.ls(self._path(folder), detail=False)
        except NotFoundError:
            return []
        return [PurePosixPath(path).name for path in found]

    def delete(self, name: str) -> None:
        """Remove the object, if it is there. Raises StoreUnavailableError."""
        with contextlib.suppress(NotFoundError), self._reported(name):
            self._files.rm_file(self._path(name))

    def _bound(self, source: Path) -> dict[str, float]:
        """How long an upload may take, for a client that takes a bound.

        S3's waits without end where a store takes the header of an upload and says nothing.
        """
        if not getattr(self._files, "async_impl", False):
            return {}
        return {"timeout": _UPLOAD_SECONDS + source.stat().st_size / _SLOWEST}

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _prepare(self) -> None:
        """Make the directory, or find out whether the store can be read at all."""
        if self._local:
            Path(self._root).mkdir(parents=True, exist_ok=True)
            return
        bucket = self._root.partition("/")[0]
        # `exists` says no where the store cannot be reached, too, and not why.
        with contextlib.suppress(FileNotFoundError, PermissionError):
            self._files.info(self._path(f".probe-{uuid.uuid4().hex}"))
        # A prefix without objects is none yet; a bucket that is missing is a mistake.
        if not self._files.exists(bucket):
            raise FileNotFoundError(f"there is no bucket {bucket!r}, or it may not be listed")

    def _write_and_remove(self) -> None:
        path = self._path(f".probe-{uuid.uuid4().hex}")
        self._files.pipe_file(path, b"")
        self._files.rm_file(path)

    def _at_start(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:
            if not is_full(error):
                raise self._unusable(error) from None

    def _unusable(self, error: Exception) -> ConfigurationError:
        # Texts of libraries may repeat what is kept out of the place.
        lines = [] if self._secret else str(error).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        return ConfigurationError(
            f"blob_url: {self.place} cannot be used: {reason}; create it, or correct the setting "
            "and the credentials"
        )

    @contextlib.contextmanager
    def _reported(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise NotFoundError(f"There is no object '{name}' in {self.place}.") from None
        except Exception as error:
            if is_full(error):
                raise
            if isinstance(error, _LASTING):
                raise HaganeError(
                    f"{self.place} refuses the object '{name}' ({type(error).__name__}): correct "
                    "blob_url, or the rights of its credentials."
                ) from error
            # Each store has errors of its own; all of them mean that it cannot be used now.
            raise StoreUnavailableError(
                f"{self.place} cannot be used at the moment ({type(error).__name__}); try again "
                "shortly."
            ) from error


def shown(url: str) -> str:
    """The address without what may be secret: a user, a password, and parameters."""
    if "://" not in url:
        return url
    return _USER.sub("//", url).partition("?")[0].partition("#")[0]
