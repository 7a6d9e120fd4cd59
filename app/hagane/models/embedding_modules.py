"""The steps from a text to its embedding, in sentence-transformers' `modules.json`.

A model, a pooling, linear layers, and a scaling to length 1, in this order: others would be
computed wrongly. Needs no torch. https://sbert.net/docs/package_reference/sentence_transformer/
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from hagane.system.errors import ModelError
from hagane.system.files import read_text

_FILE = "modules.json"
_LARGEST = 1 << 20
_PACKAGE = "sentence_transformers."
# By the first letters of the steps that are known.
_ORDER = re.compile("TPD*N?")
_KNOWN = ("Transformer", "Pooling", "Dense", "Normalize")


class EmbeddingModule(msgspec.Struct, frozen=True):
    """One step: its class, and the folder of its files."""

    path: str
    type: str

    @property
    def kind(self) -> str:
        """The name of the class."""
        return self.type.rpartition(".")[2]

    def folder(self, directory: Path) -> Path:
        """That of the step of the model in `directory`."""
        return directory / self.path


def embedding_modules(directory: Path) -> tuple[EmbeddingModule, ...]:
    """Those of the model in `directory`; none where it has no such file.

    Raises ModelError for steps that are unknown, or in another order.
    """
    path = directory / _FILE
    if not path.is_file():
        return ()
    try:
        steps = msgspec.json.decode(read_text(path, _LARGEST), type=tuple[EmbeddingModule, ...])
    except msgspec.DecodeError as error:
        raise ModelError(f"{path}: {error}") from None
    for step in steps:
        if not step.type.startswith(_PACKAGE) or step.kind not in _KNOWN:
            raise ModelError(
                f"{path}: the step {step.type!r} is not supported; there may be {', '.join(_KNOWN)}"
            )
    if not _ORDER.fullmatch("".join(step.kind[0] for step in steps)):
        raise ModelError(
            f"{path}: the steps {', '.join(step.kind for step in steps)} are not supported; they "
            "may be a Transformer, a Pooling, Dense layers and Normalize, in this order"
        )
    if steps[0].path:
        raise ModelError(
            f"{path}: the Transformer lies in {steps[0].path!r}, not in the model's own folder"
        )
    for step in steps[1:]:
        if step.path in ("", "..") or Path(step.path).name != step.path:
            raise ModelError(f"{path}: {step.path!r} is no folder of the model's own")
    return steps
