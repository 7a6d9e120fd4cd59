"""Models that jobs start from or learn from, by name."""

from __future__ import annotations

from pathlib import Path

from hagane.api.serving import Serving
from hagane.system.errors import InvalidRequestError, ModelError
from hagane.text.hub import local_model, model_stores


def stored_model(serving: Serving, name: str, param: str) -> Path:
    """The directory of the default model, of one in the stores, or of one that a job made.

    Raises InvalidRequestError that names `param`.
    """
    if name == serving.model.id:
        return serving.model.directory
    try:
        directory = local_model(name, model_stores(serving.settings))
    except (ModelError, OSError, ValueError) as error:
        raise InvalidRequestError(f"{error}.", param=param) from None
    if directory is None:
        raise InvalidRequestError(f"'{name}' is not on this server: fetch it first.", param=param)
    return directory
