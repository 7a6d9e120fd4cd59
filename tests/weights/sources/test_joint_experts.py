"""Experts as gpt-oss stores them: floats and MXFP4."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hagane.kernels import cpu
from hagane.models.attention import PackedCausal
from hagane.system.errors import ModelError
from hagane.weights.load import load_model
from hagane.weights.opening import open_weights
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from tests.support.mixture import make_mixture

EXPERTS = "model.layers.1.mlp.experts"
TOKENS = torch.arange(3, 23)


def to_mxfp4(directory: Path) -> dict[str, torch.Tensor]:
    """Replace all experts by random codes; returns the floats [experts, inputs, outputs]."""
    tensors = load_file(directory / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    floats = {}
    for name in [n for n in tensors if n.endswith(("gate_up_proj", "down_proj")) and "exp" in n]:
        experts, inputs, outputs = tensors.pop(name).shape
        shape = (experts, outputs, inputs // 32)
        options = {"dtype": torch.uint8, "generator": generator}
        blocks = torch.randint(0, 256, (*shape, 16), **options)
        scales = torch.randint(120, 125, shape, **options)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        floats[name] = convert_moe_packed_tensors(blocks, scales)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    raw = json.loads((directory / "config.json").read_text())
    raw["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (directory / "config.json").write_text(json.dumps(raw))
    return floats


@pytest.fixture
def gpt_oss(tmp_path) -> Path:
    return make_mixture(tmp_path, "gpt_oss")


def read(source, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.cat([block.float() for block in source.read(name, shape).split(7)])


def test_codes_of_four_bits_are_the_floats_of_transformers(gpt_oss):
    floats = to_mxfp4(gpt_oss)
    _, source = open_weights(gpt_oss)
    both = floats[f"{EXPERTS}.gate_up_proj"][2].float()
    for part, first in (("gate", 0), ("up", 1)):
        rows = read(source, f"{EXPERTS}.2.{part}_proj.weight", (32, 64))
        assert torch.equal(rows, both[:, first::2].t())
    down = read(source, f"{EXPERTS}.2.down_proj.weight", (64, 32))
    assert torch.equal(down, floats[f"{EXPERTS}.down_proj"][2].float().t())


@torch.no_grad()
@pytest.mark.skipif(not cpu.available(), reason="kernels not built")
def test_codes_are_served_with_their_bits(gpt_oss):
    to_mxfp4(gpt_oss)
    options = {"device": "cpu", "dtype": torch.bfloat16, "quantization": None}
    plain, _ = load_model(gpt_oss, **options)
    expected = plain.logits(plain(TOKENS, PackedCausal(rows=1, length=len(TOKENS))))
    served, report = load_model(gpt_oss, operations=cpu, **options)
    experts = served.model.layers[1].mlp.experts.experts._kept
    assert all(weight.nbytes < 0.8 * 64 * 64 for weight, _ in experts)
    weights = plain.model.layers[1].mlp
    x = torch.randn(9, 64).bfloat16()
    chosen, shares = torch.arange(9).view(9, 1).int() % 4, torch.ones(9, 1)
    close = torch.nn.functional.cosine_similarity(
        served.model.layers[1].mlp.experts(x, chosen, shares, None).float(),
        weights.experts(x, chosen, shares, None).float(),
    )
    assert close.min() > 0.999
    assert expected.isfinite().all() and report.bits_per_weight < 16


@torch.no_grad()
@pytest.mark.skipif(not cpu.available(), reason="kernels not built")
def test_a_scale_that_kernels_do_not_have_dequantizes_the_experts_of_its_layer(gpt_oss):
    to_mxfp4(gpt_oss)
    file = gpt_oss / "model.safetensors"
    tensors = load_file(file)
    tensors[f"{EXPERTS}.down_proj_scales"][2, 5, 0] = 90
    save_file(tensors, file, metadata={"format": "pt"})
    options = {"device": "cpu", "dtype": torch.bfloat16, "quantization": None}
    served, _ = load_model(gpt_oss, operations=cpu, **options)
    layers = [layer.mlp.experts.experts._kept for layer in served.model.layers]
    kept, dequantized = (sum(w.nbytes for pair in layer for w in pair) for layer in layers)
    assert kept < 0.5 * dequantized
    plain, _ = load_model(gpt_oss, **options)
    expected = plain.logits(plain(TOKENS, PackedCausal(rows=1, length=len(TOKENS))))
    assert expected.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop(f"{EXPERTS}.down_proj_bias"),
            r"1.mlp.experts.0.down_proj.bias is missing",
        ),
        (lambda t: t.pop(f"{EXPERTS}.down_proj"), r"down_proj.weight is missing"),
        (
            lambda t: t.update({f"{EXPERTS}.down_proj": torch.zeros(4, 8, 64)}),
            r"down_proj.weight has shape \[64, 8\]",
        ),
        (
            lambda t: t.update({f"{EXPERTS}.down_proj": torch.zeros(3, 32, 64)}),
            r"3.down_proj.weight is missing",
        ),
        (lambda t: t.update({f"{EXPERTS}.more": torch.zeros(2)}), r"experts.more is unexpected"),
    ],
)
def test_what_is_missing_or_left_over_is_named(gpt_oss, change, message):
    tensors = load_file(gpt_oss / "model.safetensors")
    change(tensors)
    save_file(tensors, gpt_oss / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=message):
        open_weights(gpt_oss)


def test_scales_without_their_codes_are_refused(gpt_oss):
    to_mxfp4(gpt_oss)
    tensors = load_file(gpt_oss / "model.safetensors")
    tensors[f"{EXPERTS}.down_proj_scales"] = tensors[f"{EXPERTS}.down_proj_scales"][:, :-1].clone()
    save_file(tensors, gpt_oss / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="are not MXFP4"):
        open_weights(gpt_oss)[1].read(f"{EXPERTS}.0.down_proj.weight", (64, 32))
