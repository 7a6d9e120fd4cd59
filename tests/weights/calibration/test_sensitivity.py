"""What a matrix costs in 4 bits, estimated by gradients, next to what it does cost."""

from __future__ import annotations

import pytest
import torch
from hagane.kernels import reference
from hagane.models.attention import PackedSequences
from hagane.models.config import Quantization
from hagane.models.decoder import Transformer
from hagane.models.formats.dense import Dense
from hagane.weights.calibration.sensitivity import Sensitivity
from hagane.weights.load import ModelLoader, load_model
from hagane.weights.opening import open_weights
from safetensors.torch import load_file, save_file

LENGTH = 64


@pytest.fixture(scope="module")
def directory(tiny_model_dir, tmp_path_factory):
    """The tiny model with weights so large that its answers depend on them."""
    target = tmp_path_factory.mktemp("sharp")
    tensors = load_file(tiny_model_dir / "model.safetensors")
    sharp = {name: t * (0.7 if t.ndim == 2 else 1) for name, t in tensors.items()}
    save_file(sharp, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_bytes((tiny_model_dir / "config.json").read_bytes())
    return target


def logprobs(model: Transformer, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        hidden = model(ids.flatten(), PackedSequences([LENGTH] * len(ids)))
        return model.logits(hidden).log_softmax(-1)


def test_estimates_are_near_the_divergence_of_each_matrix_alone(directory):
    ids = torch.randint(0, 300, (32, LENGTH), generator=torch.Generator().manual_seed(1))
    config, source = open_weights(directory)
    with torch.device("meta"):
        empty = Transformer(config, None, reference)
    loader = ModelLoader(empty, directory, source, torch.float32)
    form = Quantization("int4", 32, rotated=True)
    estimates = Sensitivity(empty, loader, form, ids, count=32).measure()

    options = {"device": "cpu", "dtype": torch.float32}
    model, _ = load_model(directory, quantization=None, **options)
    coarse, _ = load_model(directory, quantization=form, **options)
    exact = logprobs(model, ids)
    seen = {}
    for name, module in model.named_modules():
        if isinstance(module, Dense):
            whole = module.weight.data
            module.weight.data = coarse.get_submodule(name).matrix(torch.float32)
            change = exact - logprobs(model, ids)
            seen[name.removeprefix("model.")] = float((exact.exp() * change).sum(-1).mean())
            module.weight.data = whole
    # Attention has 8 bits in the coarse model.
    compared = {path for path in seen if "mlp" in path}
    assert compared <= estimates.keys() == seen.keys()
    for path in compared:
        assert estimates[path] == pytest.approx(seen[path], rel=0.5), path
