"""The files of a model on the hub, with their sizes and hashes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol

from hagane.system.errors import ModelError
from hagane.text.hub import HUB_FILES, SAFE_PATH, only_gguf, split_hub_id
from hagane.weights.sources.gguf.file import expected_shards

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

_TIMEOUT_SECONDS = 15.0
# A model of 700 B parameters has fewer than two hundred.
_MOST_FILES = 4096


class Digest(Protocol):
    """A hash that is being computed, as those of hashlib."""

    def update(self, data: bytes, /) -> None:
        """Take more bytes."""

    def hexdigest(self) -> str:
        """The hash of all bytes so far."""


@dataclass(frozen=True)
class HubFile:
    """A file at `path` of its repository, which is `place` in the model's directory.

    `digest` is SHA-256 of large files (64 digits), Git's SHA-1 of small ones. `size` is in bytes.
    """

    path: str
    place: str
    size: int
    digest: str

    def hasher(self) -> Digest:
        """A computation of `digest` from its beginning."""
        if len(self.digest) == 64:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)


@dataclass(frozen=True)
class HubModel:
    """The files that serving a model takes, as of one commit of its repository.

    `endpoint` is the hub's address.
    """

    endpoint: str
    id: str
    repository: str
    commit: str
    files: tuple[HubFile, ...]

    @property
    def name(self) -> str:
        """What a store calls it: the repository, or the file that was asked for."""
        _, file = split_hub_id(self.id)
        if file is None:
            return self.repository.partition("/")[2]
        return re.sub(r"-\d{5}-of-\d{5}$", "", PurePosixPath(file).stem)

    def url(self, file: HubFile) -> str:
        """Where a file is fetched."""
        from huggingface_hub import hf_hub_url

        commit, hub = self.commit, self.endpoint
        return hf_hub_url(self.repository, file.path, revision=commit, endpoint=hub)


def find_on_hub(name: str, endpoint: str | None = None) -> HubModel:
    """Ask the hub (default: that of HF_ENDPOINT) for the files of the hub id `name`.

    Raises ModelError for what is no hub id, is not there, or has no weights that can be read.
    """
    repository, file = split_hub_id(name)
    # 8 MB that a server of local models does without.
    from huggingface_hub import HfApi

    hub = HfApi(endpoint)
    try:
        info = hub.model_info(repository, files_metadata=True, timeout=_TIMEOUT_SECONDS)
    except Exception as error:  # besides its own, the library lets its HTTP client's errors out
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(f"model {name!r} was not found on the hub: {reason}") from None
    listed = {one.rfilename: one for one in info.siblings or ()}
    if len(listed) > _MOST_FILES:
        raise ModelError(f"{repository} has {len(listed)} files; a model has at most {_MOST_FILES}")
    files = _chosen(repository, file, listed)
    return HubModel(hub.endpoint, name, repository, info.sha or "main", files)


def _chosen(
    repository: str, file: str | None, listed: Mapping[str, RepoSibling]
) -> tuple[HubFile, ...]:
    if file is None:
        if any(path.endswith(".safetensors") and "/" not in path for path in listed):
            paths = [path for path in listed if any(fnmatch(path, kind) for kind in HUB_FILES)]
            return tuple(_file(listed[path], path) for path in paths)
        file = only_gguf(repository, list(listed))
    shards = [shard.as_posix() for shard in expected_shards(Path(file))]
    if missing := [shard for shard in shards if shard not in listed]:
        raise ModelError(f"{repository} has no file {missing[0]}")
    # A store looks for the file in the model's directory, not below it.
    return tuple(_file(listed[shard], PurePosixPath(shard).name) for shard in shards)


def _file(listed: RepoSibling, place: str) -> HubFile:
    path, size = listed.rfilename, listed.size
    digest = listed.lfs.sha256 if listed.lfs else listed.blob_id
    if not SAFE_PATH.fullmatch(path):
        raise ModelError(f"the hub names a file {path!r}, which is no plain path")
    if size is None or size < 0 or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", digest or ""):
        raise ModelError(f"the hub gives no size or no hash of {path}")
    return HubFile(path, place, size, str(digest))
