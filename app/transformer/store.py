"""The model store: from a name on the command line to a directory in Hugging Face layout."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from app.errors import ModelError

BUILTIN_MODELS = Path(__file__).resolve().parents[2] / "models"
# Weights in safetensors only: pickled files are never fetched, let alone loaded.
_HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def resolve_model(name: str, models_dir: Path = BUILTIN_MODELS) -> Path:
    """The directory of a model given as a path, a name in `models_dir`, or a hub id `OWNER/NAME`.

    Raises ModelError saying where was looked, or why the download failed.
    """
    return local_model(name, models_dir) or _download(name)


def local_model(name: str, models_dir: Path = BUILTIN_MODELS) -> Path | None:
    """The directory of a model on this machine; None for a hub id.

    Raises ModelError saying where was looked.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path.resolve()
    # A bare name only: the store is not a way to climb out of its directory.
    if path.name == name and name not in (".", "..") and (models_dir / name).is_dir():
        return (models_dir / name).resolve()
    if _HUB_ID.fullmatch(name):
        return None
    known = (
        sorted(p.name for p in models_dir.glob("*") if p.is_dir()) if models_dir.is_dir() else []
    )
    raise ModelError(
        f"model {name!r} is neither a directory nor a model in {models_dir} "
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
