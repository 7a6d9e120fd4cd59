"""What one export reads and writes, and how much room that takes. Needs no torch."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from hagane.models.spec import checkpoint_shapes
from hagane.text.hub import stored_bytes
from hagane.weights.sources.config import load_config

ExportFormat = Literal["adapter", "model", "gguf", "gguf_adapter"]
MatrixType = Literal["F32", "F16", "Q8_0"]

_BITS = {"F32": 32.0, "F16": 16.0, "Q8_0": 8.5}
_MODEL_BITS = {"float32": 32.0}


class ExportTask(BaseModel):
    """One file to write: `target`, of a model (`base`), an adapter for it, or both.

    `adapter` is the PEFT directory itself, zipped; `model` a Hugging Face directory, zipped, the
    adapter merged into it; `gguf` the same as one file for llama.cpp with matrices of `type`;
    `gguf_adapter` the adapter alone for llama.cpp.
    """

    model_config = ConfigDict(frozen=True)

    base: Path
    adapter: Path | None
    target: Path
    format: ExportFormat
    type: MatrixType = "Q8_0"

    def needed_bytes(self) -> int:
        """Room on the disk that writing takes at most, about. Raises ModelError."""
        if self.format in ("adapter", "gguf_adapter"):
            # As GGUF it is float32, which may be twice as much.
            return 2 * (stored_bytes(self.adapter) if self.adapter else 0)
        if self.format == "model" and self.adapter is None:
            return stored_bytes(self.base)
        config = load_config(self.base)
        parameters = sum(map(prod, checkpoint_shapes(config).values()))
        if self.format == "gguf":
            return round(parameters * _BITS[self.type] / 8)
        # The merged directory, and the archive of it.
        return 2 * round(parameters * _MODEL_BITS.get(config.dtype, 16.0) / 8)
