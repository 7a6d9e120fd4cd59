"""What the bits of a KV block depend on, besides its tokens, as a name."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from itertools import chain
from pathlib import Path

from hagane.weights.sources.gguf.file import shard_paths

_PART = 64 << 10
_STRIDE = 16 << 20


def identity(model: Path, parts: Iterable[object]) -> str:
    """A name of the model's files, of this program and `parts`, 32 hexadecimal digits.

    Of each file its size, the time it was written and 64 KiB of every 16 MiB count: reading all of
    a large model would take longer than loading it.
    """
    digest = blake2b(digest_size=16)
    digest.update(repr(tuple(parts)).encode())
    files = shard_paths(model) if model.is_file() else filter(Path.is_file, model.iterdir())
    program = Path(__file__).parents[2]
    floors = ("kernels", "models", "engine/cache")
    for path in sorted(chain(*((program / name).rglob("*.py") for name in floors))):
        digest.update(path.read_bytes())
    for path in sorted({*files, *(program / "kernels").glob("_cpu*.so")}):
        stat = path.stat()
        digest.update(f"\n{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        with path.open("rb") as file:
            for start in range(0, stat.st_size, _STRIDE):
                file.seek(start)
                digest.update(file.read(_PART))
    return digest.hexdigest()
