"""The model store: from a name on the command line to a directory in Hugging Face layout."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from hagane.models.config import CONFIG_FILE
from hagane.system.errors import ModelError
from hagane.system.settings import Settings
from hagane.weights.sources.config import is_gguf
from hagane.weights.sources.gguf.file import SUFFIX, expected_shards, shard_paths

# In a data directory.
MODELS_FOLDER = "models"
_PULLED_FOLDER = "pulled"
_PACKAGE = Path(__file__).resolve().parents[1]
# A wheel carries the models inside the package (see setup.py); a checkout has them at its root.
_WHEEL, _CHECKOUT = _PACKAGE / "builtin", _PACKAGE.parents[1] / "models"
BUILTIN_MODELS = _WHEEL if _WHEEL.is_dir() else _CHECKOUT
# Weights in safetensors only: pickled files are never fetched, let alone loaded.
HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model")
_PART = r"(?!\.)[\w.-]+"  # no part of a path that leads upwards, nor a hidden one
SAFE_PATH = re.compile(rf"({_PART}/)*{_PART}")
_HUB_ID = re.compile(rf"({_PART}/{_PART})(?:/((?:{_PART}/)*{_PART}\.gguf))?")
# In the hub's cache a file is called by its hash: Git's for small files, else SHA-256.
_SHA1, _SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")


def own_store(settings: Settings) -> Path:
    """The store that models are pulled into and removed from: models_dir, or one in data_dir."""
    return settings.models_dir or settings.data_dir / _PULLED_FOLDER


def model_stores(settings: Settings) -> tuple[Path, ...]:
    """Where a server looks for a model's name: its store, the built-in models, its jobs' models."""
    return own_store(settings), BUILTIN_MODELS, settings.data_dir / MODELS_FOLDER


def resolve_model(name: str, stores: Sequence[Path] = (BUILTIN_MODELS,)) -> Path:
    """The directory or GGUF file of a model given as a path, a name in `stores`, or a hub id.

    Hub ids are `OWNER/NAME`, or `OWNER/NAME/FILE.gguf` for one file. Raises ModelError saying
    where was looked, or why the download failed.
    """
    return local_model(name, stores) or download(name)


def local_model(name: str, stores: Sequence[Path]) -> Path | None:
    """The directory or GGUF file of a model on this machine; None for a hub id.

    Raises ModelError saying where was looked, or that a directory holds several GGUF models.
    """
    path = Path(name).expanduser()
    if found := _model_at(path):
        return found
    # A bare name only: the store is not a way to climb out of its directory.
    if path.name == name and name not in (".", ".."):
        for store in stores:
            if found := _model_at(store / name) or _model_at(store / f"{name}{SUFFIX}"):
                return found
    if _HUB_ID.fullmatch(name):
        return None
    known = sorted(path.name for store in stores for path in store.glob("*") if path.is_dir())
    places = " or ".join(str(store) for store in stores)
    raise ModelError(
        f"model {name!r} is neither a directory nor a model in {places} "
        f"(there: {', '.join(known) or 'none'})"
    )


def models_in(store: Path) -> dict[str, Path]:
    """The models of a store by name: directories with a configuration, and GGUF files."""
    found: dict[str, Path] = {}
    for path in sorted(store.glob("*")):
        try:
            model = _model_at(path)
        except ModelError:
            continue  # of several, none can be meant by the directory's name
        if model is not None and (is_gguf(model) or (model / CONFIG_FILE).is_file()):
            found.setdefault(path.stem if is_gguf(path) else path.name, model)
    return found


def _model_at(path: Path) -> Path | None:
    """A directory in Hugging Face layout, a GGUF file, or the one GGUF file in a directory."""
    if is_gguf(path):
        return shard_paths(path)[0].resolve() if path.is_file() else None
    if not path.is_dir():
        return None
    if (path / CONFIG_FILE).is_file():
        return path.resolve()
    files = sorted({shard_paths(file)[0] for file in path.glob(f"*{SUFFIX}")})
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ModelError(f"{path} holds several models ({names}): name one of the files")
    return (files[0] if files else path).resolve()


def stored_bytes(model: Path) -> int:
    """The size of a model's files, in bytes."""
    if is_gguf(model):
        parts = [part for part in expected_shards(model) if part.is_file()]
        return sum(part.stat().st_size for part in parts)
    return sum(file.stat().st_size for file in model.rglob("*") if file.is_file())


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form OWNER/NAME or OWNER/NAME/FILE.gguf."""
    return _HUB_ID.fullmatch(name) is not None


def download(name: str) -> Path:
    """The directory or GGUF file of a hub id, fetched into the hub's cache where it is missing.

    An interrupted download goes on where it stopped. Raises ModelError with the reason.
    """
    repository, file = split_hub_id(name)
    # 8 MB that a server of local models does without.
    from huggingface_hub import hf_hub_download, list_repo_files, snapshot_download

    try:
        if file is not None:
            parts = [shard.as_posix() for shard in expected_shards(Path(file))]
            first, *_ = [Path(hf_hub_download(repository, part)) for part in parts]
            return first
        directory = Path(snapshot_download(repository, allow_patterns=list(HUB_FILES)))
        if any(directory.glob("*.safetensors")):
            return directory
        return download(f"{repository}/{only_gguf(repository, list_repo_files(repository))}")
    except ModelError:
        raise
    except Exception as error:  # besides its own, the library lets its HTTP client's errors out
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"model {name!r} is nothing local and could not be fetched from the hub: {reason}"
        ) from None


def split_hub_id(name: str) -> tuple[str, str | None]:
    """The repository and the file of a hub id. Raises ModelError."""
    match = _HUB_ID.fullmatch(name)
    if match is None:
        raise ModelError(f"{name!r} is no hub id: these are OWNER/NAME or OWNER/NAME/FILE.gguf")
    return match[1], match[2]


def only_gguf(repository: str, files: Sequence[str]) -> str:
    """The GGUF model among the files of a repository without safetensors, by its first shard.

    Raises ModelError if there is none, or are several.
    """
    found = [file for file in files if file.endswith(SUFFIX)]
    firsts = sorted({expected_shards(Path(file))[0].as_posix() for file in found})
    if len(firsts) != 1:
        listed = ", ".join(f"{repository}/{file}" for file in firsts) or "none"
        raise ModelError(f"{repository} has no safetensors; name one of its GGUF files ({listed})")
    return firsts[0]


def verify(model: Path) -> int:
    """Compare downloaded files with the hashes that the hub gave; returns how many there are.

    Raises ModelError naming the file that is not what it was on the hub.
    """
    files = shard_paths(model) if is_gguf(model) else sorted(p for p in model.rglob("*"))
    blobs = [(file, file.resolve()) for file in files if file.is_file()]
    checked = 0
    for file, blob in blobs:
        if _SHA256.fullmatch(blob.name):
            digest = hashlib.sha256()
        elif _SHA1.fullmatch(blob.name):
            digest = hashlib.sha1(b"blob %d\0" % blob.stat().st_size, usedforsecurity=False)
        else:
            continue
        with blob.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        if digest.hexdigest() != blob.name:
            blob.unlink()
            raise ModelError(f"{file} was damaged on its way and is removed: pull it again")
        checked += 1
    return checked
