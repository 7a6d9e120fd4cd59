"""The matrices of a model, read again after it was packed for serving."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from hagane.kernels import reference
from hagane.models.config import Quantization
from hagane.models.decoder import Transformer
from hagane.models.formats.layer import Linear
from hagane.system.errors import ModelError
from hagane.weights.eight_bits import choose_eight_bits
from hagane.weights.load import ModelLoader
from hagane.weights.opening import open_weights


class MatrixReader:
    """Reads linear layers of the model in `directory`, with the values of `load_model`.

    Each is read once. Raises ModelError, as `load_model` does. Example:

        reader = MatrixReader(directory, torch.bfloat16, quantization)
        weight = reader.read("layers.0.mlp.down_proj")
    """

    def __init__(
        self, directory: Path, dtype: torch.dtype, quantization: Quantization | None
    ) -> None:
        config, source = open_weights(directory)
        if config.quantization is None and quantization is not None:
            quantization = choose_eight_bits(config, source, quantization)
        with torch.device("meta"):
            self._model = Transformer(config, quantization, reference)
        self._loader = ModelLoader(self._model, directory, source, dtype)

    @torch.no_grad()
    def read(self, path: str) -> Tensor:
        """The matrix [out, in] of the layer at `path` below the decoder, dequantized to float32."""
        name = f"model.{path}"
        layer = self._model.get_submodule(name)
        if not isinstance(layer, Linear):
            raise ModelError(f"{path} is no linear layer of the model")
        self._loader.load(name, layer)
        weight = layer.matrix(torch.float32)
        layer.to("meta")
        return weight
