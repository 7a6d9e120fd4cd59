"""Configurations as they are found, and of wrong shapes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hagane.models.config import ModelConfig
from hagane.models.families import FAMILIES, read_config, read_config_file
from hagane.system.errors import ModelError
from hagane.weights.sources.gguf.architectures import ARCHITECTURES

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "models.md"
PLAIN = {
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
THETA = {"rope_type": "default", "rope_theta": 1e6}


def read(**changes) -> ModelConfig:
    return read_config(PLAIN | changes)


def test_old_names_of_dtypes_are_read():
    assert read(torch_dtype="torch.bfloat16").dtype == "bfloat16"
    assert read(dtype="torch.float16").dtype == "float16"


def test_llama_4_states_its_temperature_as_a_number():
    changes = {"architectures": ["Llama4ForCausalLM"], "head_dim": 16, "num_hidden_layers": 4}
    known = read(**changes, attn_temperature_tuning=True)
    assert read(**changes, attn_temperature_tuning=4).layer_specs == known.layer_specs
    assert read(**changes, attn_temperature_tuning=False).layer_specs != known.layer_specs


def test_no_token_may_be_minus_one():
    config = read(eos_token_id=[-1, 3], bos_token_id=-1)
    assert config.eos_token_ids == (3,) and config.bos_token_id is None


def test_rope_parameters_by_kind_of_layer_are_read_where_they_agree():
    both = {"full_attention": THETA, "sliding_attention": THETA}
    assert read(rope_parameters=both).rope == read(rope_parameters=THETA).rope
    assert read(rope_parameters={"full_attention": THETA}).rope.theta == 1e6
    with pytest.raises(ModelError, match="differ between the kinds of layers"):
        read(rope_parameters=both | {"sliding_attention": THETA | {"rope_theta": 1e4}})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 10**7),
        ("vocab_size", 10**18),
        ("hidden_size", 1 << 40),
        ("max_position_embeddings", 10**30),
        ("num_attention_heads", True),
        ("intermediate_size", "96"),
        ("eos_token_id", "</s>"),
        ("torch_dtype", ["bfloat16"]),
        ("rms_norm_eps", float("nan")),
    ],
)
def test_sizes_that_cannot_be_are_refused_at_once(key, value):
    started = time.monotonic()
    with pytest.raises(ModelError, match=key):
        read(**{key: value})
    assert time.monotonic() - started < 1


@pytest.mark.parametrize(
    "changes",
    [
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": "two"},
        {"use_sliding_window": True, "sliding_window": 8, "layer_types": [[], {}]},
        {"rope_scaling": {"rope_type": "linear", "factor": float("nan")}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 2, "beta_fast": float("inf")}},
        {"rope_scaling": {"rope_type": ["linear"]}},
        {"rope_parameters": {"full_attention": 7}},
        {"quantization_config": {"quant_method": "hagane", "bits": [4]}},
        {"architectures": [["LlamaForCausalLM"]]},
        {"architectures": "LlamaForCausalLM"},
    ],
)
def test_wrong_shapes_are_one_clear_line(changes):
    with pytest.raises(ModelError) as caught:
        read(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b"[]", "must hold a JSON object"),
        (b"\xff\xfe", "not UTF-8"),
        (b"", "cannot be read as JSON"),
    ],
)
def test_files_that_hold_no_object_are_refused_by_name(tmp_path, content, message):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=rf"config\.json .*{message}"):
        read_config_file(tmp_path)


def test_a_byte_order_mark_is_read_over(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(PLAIN).encode())
    assert read_config_file(tmp_path) == read()


@pytest.mark.parametrize("name", ["MambaForCausalLM", None, 3])
def test_an_unknown_family_is_refused_in_one_line_that_names_the_others(name):
    with pytest.raises(ModelError, match=r"architectures is .*supported are Llama") as caught:
        read_config({"architectures": [name]})
    assert "\n" not in str(caught.value)
    assert all(family in str(caught.value) for family in FAMILIES)


def test_the_document_lists_the_families_that_are_read():
    files: dict[str, str] = {}
    for name, found in ARCHITECTURES.items():
        files.setdefault(found.name, name)
    # Files of these read as another of Hugging Face's, or as one of two.
    files |= {
        "MistralForCausalLM": "llama", "MixtralForCausalLM": "llama",
        "InternLM2ForCausalLM": "internlm2", "InternLM3ForCausalLM": "llama",
        "ExaoneForCausalLM": "exaone",
        "Olmo3ForCausalLM": "olmo2", "DeepseekV3ForCausalLM": "deepseek2",
        "GraniteMoeSharedForCausalLM": "granitemoe", "PhiMoEForCausalLM": "phimoe",
    }  # fmt: skip
    text = DOCUMENT.read_text(encoding="utf-8")
    for name, family in FAMILIES.items():
        gguf = f"`{files[name]}`" if name in files else "no"
        assert f"| {family.models} | `{name}` | {gguf} |" in text
    assert set(files) <= set(FAMILIES)


def test_deepseek_scores_experts_as_its_code_does():
    deepseek = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
                "num_key_value_heads": 4}  # fmt: skip
    for name, own, other in (("V2", "softmax", "sigmoid"), ("V3", "sigmoid", "softmax")):
        raw = deepseek | {"architectures": [f"Deepseek{name}ForCausalLM"]}
        config = read(**raw, scoring_func=own)
        assert config == read(**raw)
        with pytest.raises(ModelError, match=f"scoring_func is '{other}'; supported is {own}"):
            read(**raw, scoring_func=other)
