"""The model store: from a name on the command line to a directory in Hugging Face layout."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from hagane.models.config import CONFIG_FILE
from hagane.system.errors import ModelError
from hagane.system.settings import Settings
from hagane.weights.sources.config import is_gguf
from hagane.weights.sources.gguf.file import SUFFIX, expected_shards, shard_paths

# In a data directory.
MODELS_FOLDER = "models"
_PACKAGE = Path(__file__).resolve().parents[1]
# A wheel carries the models inside the package (see setup.py); a checkout has them at its root.
_WHEEL, _CHECKOUT = _PACKAGE / "builtin", _PACKAGE.parents[1] / "models"
BUILTIN_MODELS = _WHEEL if _WHEEL.is_dir() else _CHECKOUT
# Weights in safetensors only: pickled files are never fetched, let alone loaded.
_HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model")
_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:/((?:[\w.-]+/)*[\w.-]+\.gguf))?")


def model_stores(settings: Settings) -> tuple[Path, ...]:
    """Where a server looks for a model's name: its store, the built-in models, its jobs' models."""
    own = (settings.models_dir,) if settings.models_dir else ()
    return *own, BUILTIN_MODELS, settings.data_dir / MODELS_FOLDER


def resolve_model(name: str, stores: Sequence[Path] = (BUILTIN_MODELS,)) -> Path:
    """The directory or GGUF file of a model given as a path, a name in `stores`, or a hub id.

    Hub ids are `OWNER/NAME`, or `OWNER/NAME/FILE.gguf` for one file. Raises ModelError saying
    where was looked, or why the download failed.
    """
    return local_model(name, stores) or _download(name)


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


def _download(name: str) -> Path:
    match = _HUB_ID.fullmatch(name)
    assert match is not None, name  # noqa: S101 - local_model has refused it
    repository, file = match.groups()
    try:
        if file is not None:
            parts = [shard.as_posix() for shard in expected_shards(Path(file))]
            fetched = [Path(hf_hub_download(repository, part)) for part in parts]
            return fetched[0]
        return Path(snapshot_download(repository, allow_patterns=list(_HUB_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"model {name!r} is nothing local and could not be fetched from the hub: {reason}"
        ) from None
