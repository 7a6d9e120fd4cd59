"""Where an adapter lies and how strong it is: PEFT is the judge."""

from __future__ import annotations

import functools
import json
import warnings
from pathlib import Path

import pytest
import torch
from hagane.lora.config import AdapterConfig
from hagane.lora.files import load_adapter
from hagane.models.families import read_config, read_config_file
from hagane.models.spec import linear_shapes
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

NAMES = (
    "q_proj", "self_attn.q_proj", "v_proj", "down_proj", "layers.1.self_attn.v_proj",
    "model.layers.1.self_attn.v_proj", "proj", "layers", "mlp", "1.mlp.up_proj",
)  # fmt: skip
EXPRESSIONS = (
    r"^model\.layers\.1\..*", r".*\.layers\.3\..*", r"layers\.[02]\.mlp\..*_proj", r".*v_proj",
    r"^v_proj", r"(q|k)_proj", r"model\..*\.(q_proj|up_proj)", r"(?!.*mlp).*",
    r"layers\.\d+\.mlp\.\w+",
    r".*(?<=self_attn\.)k_proj", r"q_proj$",
)  # fmt: skip
# The modules of adapters: PEFT takes none that is not linear.
WHOLE = (
    r"^model\.layers\.1\..*_proj", r".*\.layers\.3\..*_proj", r".*layers\.[02]\.mlp\..*_proj",
    r".*v_proj", r"model\..*\.(q_proj|up_proj)", r"(?!.*mlp).*_proj", r".*(?<=self_attn\.)k_proj",
)  # fmt: skip
MATRICES = tuple(name for name in NAMES if name not in ("layers", "mlp"))
names = st.lists(st.sampled_from(MATRICES), min_size=1, max_size=4, unique=True)
expressions = st.sampled_from(EXPRESSIONS)
patterns = st.dictionaries(st.sampled_from(NAMES + EXPRESSIONS), st.integers(1, 8), max_size=4)
layers = st.one_of(st.integers(0, 4), st.lists(st.integers(0, 4), max_size=3))
listed = st.fixed_dictionaries(
    {"target_modules": names},
    optional={
        "exclude_modules": st.one_of(names, expressions),
        "layers_to_transform": layers,
        "rank_pattern": patterns,
        "alpha_pattern": patterns,
        "use_rslora": st.booleans(),
    },
)
matched = st.fixed_dictionaries(
    {"target_modules": st.one_of(st.sampled_from(WHOLE), st.just("All-Linear"), st.none())},
    optional={
        "exclude_modules": st.one_of(names, expressions),
        "rank_pattern": patterns,
        "alpha_pattern": patterns,
    },
)


@functools.cache
def base() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "vocab_size": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, eos_token_id=None, bos_token_id=None))


def judged(fields: dict) -> dict[str, tuple[int, float]]:
    """Rank and scaling of every module that PEFT changes."""
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        model = LlamaForCausalLM(base().config)
        try:
            peft = get_peft_model(model, LoraConfig(r=2, lora_alpha=3, **fields))
        except ValueError as error:
            assert "arget modules" in str(error) or "excluded" in str(error), error
            return {}
    return {
        path.removeprefix("base_model.model.model."): (m.r["default"], m.scaling["default"])
        for path, m in peft.named_modules()
        if isinstance(m, LoraLayer)
    }


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.one_of(listed, matched))
@example({"layers_to_transform": [2], "target_modules": ["model.layers.1.self_attn.v_proj"]})
def test_ranks_and_strengths_are_pefts(tmp_path_factory, fields):
    directory = tmp_path_factory.mktemp("adapter")
    stored = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, **fields}
    (directory / "adapter_config.json").write_text(json.dumps(stored))
    sizes = read_config(base().config.to_dict() | {"architectures": ["LlamaForCausalLM"]})
    found = AdapterConfig.load(directory).resolve(list(linear_shapes(sizes)))
    assert found == judged(fields)


@pytest.mark.parametrize("init", [True, False, "gaussian", "eva", "orthogonal"])
def test_factors_and_strengths_are_those_that_peft_computes_with(tmp_path: Path, init):
    base().save_pretrained(tmp_path / "base")
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=r".*\.(q_proj|v_proj|down_proj)",
        exclude_modules=r".*layers\.2\..*",
        rank_pattern={r"model\.layers\.1\.self_attn\.v_proj": 2, "down_proj": 6},
        alpha_pattern={r"^model\.layers\.[01]\..*v_proj": 12, "layers.3.self_attn.q_proj": 1},
        init_lora_weights=init,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config)
        for name, parameter in made.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        made.save_pretrained(tmp_path / "adapter")
        fresh = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        served = PeftModel.from_pretrained(fresh, tmp_path / "adapter")
    adapter = load_adapter(tmp_path / "adapter", read_config_file(tmp_path / "base"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        for module, change in adapter.changes.items():
            merged.model.get_submodule(module).weight += change.scale * change.b @ change.a
    ids = torch.arange(20)[None]
    torch.testing.assert_close(merged(ids).logits, served(ids).logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(merged(ids).logits, base()(ids).logits, atol=1e-2)
