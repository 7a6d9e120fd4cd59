"""Which model a replica has: two machines may have different files under one name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

# Of each file: as many samples of as many bytes, the first at its beginning, the last at its end.
_SAMPLES, _SAMPLE_BYTES = 64, 1 << 16
_VOCABULARY = ("tokenizer", "vocab", "merges", "special_tokens", "added_tokens", "chat_template")


class ModelVersion(msgspec.Struct, frozen=True):
    """A model's configured name, and fingerprints of all its files and of its vocabulary's."""

    name: str
    content: str
    vocabulary: str

    @classmethod
    def of(cls, name: str, directory: Path) -> ModelVersion:
        """The version in `directory`, or of a model that is a single file. Raises OSError."""
        files = [directory]
        if directory.is_dir():
            files = sorted(path for path in directory.iterdir() if path.is_file())
        words = [path for path in files if path.name.startswith(_VOCABULARY)]
        return cls(name, _fingerprint(files), _fingerprint(words or files))

    def replaces(self, other: ModelVersion) -> bool:
        """Whether requests that were made for `other` may run on this one.

        While an update is under way, its replicas serve edges of before: a version of another name
        with the same vocabulary. Other files under the same name are a mistake.
        """
        if self.content == other.content:
            return True
        return self.name != other.name and self.vocabulary == other.vocabulary

    def __str__(self) -> str:
        return f"{self.name} ({self.content})"


def fitting(model: ModelVersion, replicas: Mapping[str, ModelVersion]) -> list[str]:
    """The replicas that may run requests made for `model`: those that have it, if any do."""
    same = [name for name, version in replicas.items() if version.content == model.content]
    return same or [name for name, version in replicas.items() if version.replaces(model)]


def _fingerprint(files: Iterable[Path]) -> str:
    """Of names, sizes and samples: a check of copies, not of changes of single values.

    Training, merging and quantizing change weights everywhere in a file.
    """
    digest = hashlib.blake2b(digest_size=6)
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        step = max(_SAMPLE_BYTES, -(-(size - _SAMPLE_BYTES) // (_SAMPLES - 1)))
        with path.open("rb") as file:
            for start in range(0, size, step):
                file.seek(start)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
