"""Zip archives of directories, without compression: weights hardly shrink."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

from hagane.system.files import commit, refused_when_full

_CHUNK_BYTES = 8 << 20
# Equal directories give equal archives.
_DATE = (1980, 1, 1, 0, 0, 0)


def pack(directory: Path, target: Path, name: str, report: Callable[[float], None]) -> None:
    """Write the files of `directory` as `target`, below the folder `name` of the archive.

    `report` gets the share that is written. Half-written files and hidden ones are left out.
    Raises DiskFullError.
    """
    files = sorted(path for path in directory.rglob("*") if _belongs(path, directory))
    total, done = max(1, sum(path.stat().st_size for path in files)), 0
    partial = target.with_name(f".{target.name}.partial")
    with refused_when_full(target.parent), zipfile.ZipFile(partial, "w") as archive:
        for path in files:
            entry = zipfile.ZipInfo(f"{name}/{path.relative_to(directory)}", _DATE)
            entry.external_attr = 0o644 << 16
            with path.open("rb") as source, archive.open(entry, "w", force_zip64=True) as copy:
                while chunk := source.read(_CHUNK_BYTES):
                    copy.write(chunk)
                    done += len(chunk)
                    report(done / total)
    commit(partial, target)


def _belongs(path: Path, directory: Path) -> bool:
    parts = path.relative_to(directory).parts
    return path.is_file() and not any(part.startswith(".") for part in parts)
