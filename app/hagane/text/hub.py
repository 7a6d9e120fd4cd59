"""The model store: from a name on the command line to a directory in Hugging Face layout."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from hagane.system.errors import ModelError
from hagane.system.settings import Settings

# In a data directory.
MODELS_FOLDER = "models"
_PACKAGE = Path(__file__).resolve().parents[1]
# A wheel carries the models inside the package (see setup.py); a checkout has them at its root.
_WHEEL, _CHECKOUT = _PACKAGE / "builtin", _PACKAGE.parents[1] / "models"
BUILTIN_MODELS = _WHEEL if _WHEEL.is_dir() else _CHECKOUT
# Weights in safetensors only: pickled files are never fetched, let alone loaded.
_HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def model_stores(settings: Settings) -> tuple[Path, ...]:
    """Where a server looks for a model's name: its store, the built-in models, its jobs' models."""
    own = (settings.models_dir,) if settings.models_dir else ()
    return *own, BUILTIN_MODELS, settings.data_dir / MODELS_FOLDER


def resolve_model(name: str, stores: Sequence[Path] = (BUILTIN_MODELS,)) -> Path:
    """The directory of a model given as a path, a name in `stores`, or a hub id `OWNER/NAME`.

    Raises ModelError saying where was looked, or why the download failed.
    """
    return local_model(name, stores) or _download(name)


def local_model(name: str, stores: Sequence[Path]) -> Path | None:
    """The directory of a model on this machine; None for a hub id.

    Raises ModelError saying where was looked.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path.resolve()
    # A bare name only: the store is not a way to climb out of its directory.
    if path.name == name and name not in (".", ".."):
        for store in stores:
            if (store / name).is_dir():
                return (store / name).resolve()
    if _HUB_ID.fullmatch(name):
        return None
    known = sorted(path.name for store in stores for path in store.glob("*") if path.is_dir())
    places = " or ".join(str(store) for store in stores)
    raise ModelError(
        f"model {name!r} is neither a directory nor a model in {places} "
        f"(there: {', '.join(known) or 'none'})"
    )


def _download(hub_id: str) -> Path:
    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(_HUB_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"model {hub_id!r} is no local directory and could not be fetched from the hub: "
            f"{reason}"
        ) from None
