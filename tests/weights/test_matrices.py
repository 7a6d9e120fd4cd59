"""Matrices that are read again are those that were loaded."""

from __future__ import annotations

import pytest
import torch
from hagane.models.config import Quantization
from hagane.models.formats.layer import Linear
from hagane.system.errors import ModelError
from hagane.weights.load import load_model
from hagane.weights.matrices import MatrixReader
from hagane.weights.quantize import quantize_directory


@pytest.mark.parametrize(
    ("form", "stored"), [(None, False), ("int8", False), ("int4", False), ("int8", True)]
)
def test_every_matrix_is_the_loaded_models(tiny_model_dir, tmp_path, form, stored):
    """`stored`: from a directory that was quantized before."""
    quantization = None if form is None else Quantization(form)
    directory = tiny_model_dir
    if stored:
        directory = tmp_path / "saved"
        quantize_directory(tiny_model_dir, directory, Quantization(form))
    model, _ = load_model(directory, device="cpu", dtype=torch.float32, quantization=quantization)
    reader = MatrixReader(directory, torch.float32, quantization)
    paths = [path for path, module in model.model.named_modules() if isinstance(module, Linear)]
    for path in paths:
        wanted = model.model.get_submodule(path).matrix(torch.float32)
        assert torch.equal(reader.read(path), wanted), path
    with pytest.raises(ModelError, match="no linear layer"):
        reader.read("embed_tokens")
