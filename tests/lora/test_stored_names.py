"""Adapters that PEFT makes of models whose matrices are joint, transposed or named otherwise."""

from __future__ import annotations

import itertools

import pytest
import torch
from hagane.kernels import cpu
from hagane.lora.banks import AdapterBanks
from hagane.lora.config import AdapterConfig
from hagane.lora.files import load_adapter, save_adapter
from hagane.models.families import read_config_file
from hagane.models.spec import linear_shapes
from hagane.system.errors import ModelError
from hagane.weights.matrices import MatrixReader
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from tests.models.test_decoder import PagedRun, load, random_model, random_tokens

pytestmark = pytest.mark.skipif(not cpu.available(), reason="the kernels were not built")
# Joint matrices of all heads, of each head, and of query, key and value under Llama's own name.
TARGETS = {
    "gpt2": ["c_attn", "mlp.c_proj", "c_fc"],
    "gpt-neox": ["query_key_value", "dense", "dense_4h_to_h"],
    "phi3": ["qkv_proj", "gate_up_proj"],
}


def peft_model(family: str, directory, **options):
    """PEFT's model with random factors in every matrix that it adapts; the adapter is saved."""
    theirs = random_model(family, directory / "base")
    config = LoraConfig(
        r=3, lora_alpha=6, target_modules=TARGETS[family], rank_pattern={"0.*": 2},
        fan_in_fan_out=family == "gpt2", task_type="CAUSAL_LM", **options,
    )  # fmt: skip
    adapted = get_peft_model(theirs, config).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
            if "magnitude" in name:
                parameter.mul_(1 + 0.2 * torch.rand_like(parameter))
    adapted.save_pretrained(directory / "adapter")
    return adapted, directory / "base", directory / "adapter"


def served(base, adapter, tokens, *, dora: bool) -> torch.Tensor:
    model = load(base, cpu)
    matrices = (lambda: MatrixReader(base, torch.float32, None)) if dora else None
    banks = AdapterBanks(model, torch.float32, torch.device("cpu"), matrices)
    banks.place(0, banks.pack(banks.resolve(load_adapter(adapter, model.config))))
    return PagedRun(model, adapter=0).step([(0, tokens, 0, len(tokens))])[0]


@pytest.mark.parametrize(
    ("family", "dora"), [*itertools.product(TARGETS, [False]), ("gpt-neox", True)]
)
def test_logits_are_those_of_peft(family, dora, tmp_path):
    adapted, base, adapter = peft_model(family, tmp_path, use_dora=dora)
    tokens = random_tokens(3, 30)
    with torch.no_grad():
        expected = adapted(torch.tensor([tokens])).logits[0]
        with adapted.disable_adapter():
            plain = adapted(torch.tensor([tokens])).logits[0]
    assert (expected - plain).abs().max() > 0.01
    got = served(base, adapter, tokens, dora=dora)
    torch.testing.assert_close(got, expected, atol=3e-4, rtol=0)


def test_it_is_saved_under_the_names_of_its_parts(tmp_path):
    _, base, adapter = peft_model("gpt2", tmp_path)
    model = read_config_file(base)
    read = load_adapter(adapter, model)
    placed = read.config.resolve(list(linear_shapes(model)))
    assert placed.keys() == read.changes.keys() and len(placed) == 5 * model.layers
    factors = {module: change.tensors() for module, change in read.changes.items()}
    save_adapter(tmp_path / "again", read.config, factors)
    again = load_adapter(tmp_path / "again", model)
    for module, change in read.changes.items():
        assert again.changes[module].scale == change.scale == placed[module][1]
        for before, after in zip(change.tensors(), again.changes[module].tensors(), strict=True):
            assert torch.equal(before, after)


def test_factors_of_a_matrix_under_two_names_are_refused(tmp_path):
    _, base, adapter = peft_model("gpt2", tmp_path)
    path = adapter / "adapter_model.safetensors"
    tensors, name = load_file(path), "base_model.model.transformer.h.0.mlp.c_fc.lora_{}.weight"
    for kind in "AB":
        own = name.format(kind).replace("transformer.h", "model.layers").replace("c_fc", "up_proj")
        tensors[own] = tensors[name.format(kind)].clone()
    save_file(tensors, path)
    config = adapter / "adapter_config.json"
    config.write_text(config.read_text().replace('"c_fc"', '"c_fc", "up_proj"'))
    assert "up_proj" in AdapterConfig.load(adapter).target_modules
    with pytest.raises(ModelError, match=r"layers\.0\.mlp\.up_proj twice"):
        load_adapter(adapter, read_config_file(base))
