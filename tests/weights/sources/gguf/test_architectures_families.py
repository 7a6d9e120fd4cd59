"""Families in GGUF files: the model is that of the Hugging Face directory.

Names are those of the `gguf` package's own map; what converters rearrange is done here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import MODEL_ARCH, GGMLQuantizationType
from hagane.kernels import cpu
from hagane.models.attention import PackedCausal
from hagane.system.errors import ModelError
from hagane.weights.load import load_model
from hagane.weights.sources.config import load_config
from safetensors.torch import load_file, save_file

from tests.models.test_decoder import random_model, random_tokens
from tests.models.test_layouts import CONFIGS, state_of
from tests.support.gguf import interleaved

Tensors = dict[str, np.ndarray]
_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(.+)")


def permuted(config: dict, tensors: Tensors) -> Tensors:
    """Rows of queries and keys as the original Llama has them."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    for name, tensor in tensors.items():
        part = name.split(".")[-2]
        if part in heads:
            tensors[name] = interleaved(tensor, config.get(heads[part]) or 6)
    return tensors


def stacked(config: dict, tensors: Tensors) -> Tensors:
    """One tensor of all experts."""
    stacks: dict[str, dict[int, np.ndarray]] = {}
    for name in list(tensors):
        if match := _EXPERT.fullmatch(name):
            stacks.setdefault(f"{match[1]}.{match[3]}", {})[int(match[2])] = tensors.pop(name)
    return tensors | {name: np.stack([s[i] for i in sorted(s)]) for name, s in stacks.items()}


def latent(config: dict, tensors: Tensors) -> Tensors:
    """Keys, transposed, and values apart."""
    tensors = stacked(config, tensors)
    wide = config["qk_nope_head_dim"]
    for name in [n for n in tensors if "kv_b_proj" in n]:
        both = tensors.pop(name)
        both = both.reshape(config["num_attention_heads"], -1, both.shape[1])
        keys, values = both[:, :wide], both[:, wide:]
        tensors[name.replace("kv_b_proj", "k_b_proj")] = keys.swapaxes(1, 2)
        tensors[name.replace("kv_b_proj", "v_b_proj")] = values
    return tensors


def joint_experts(config: dict, tensors: Tensors) -> Tensors:
    """Gate and up projection of all experts apart, outputs first."""
    alternate = config["model_type"] == "gpt_oss"
    for name in [n for n in tensors if re.search(r"experts\.(gate_up|down)_proj(_bias)?$", n)]:
        tensor = tensors.pop(name)
        stem, kind = (name.removesuffix("_bias"), "bias") if "_bias" in name else (name, "weight")
        outputs = tensor if kind == "bias" else tensor.swapaxes(1, 2)
        if "gate_up" not in name:
            tensors[f"{stem}.{kind}"] = outputs
            continue
        half = outputs.shape[1] // 2
        parts = (outputs[:, ::2], outputs[:, 1::2]) if alternate else np.split(outputs, [half], 1)
        for part, values in zip(("gate_proj", "up_proj"), parts, strict=True):
            tensors[f"{stem.replace('gate_up_proj', part)}.{kind}"] = values
    return {n + ".weight" if n.endswith("sinks") else n: tensor for n, tensor in tensors.items()}


def granite(config: dict, tensors: Tensors) -> Tensors:
    for name in [n for n in tensors if "input_linear" in n]:
        joint = tensors.pop(name)
        gate, up = np.split(joint, 2, axis=joint.ndim - 2)
        own = "feed_forward.experts" if "block_sparse_moe" in name else "feed_forward.shared_expert"
        layer = name.partition(".block")[0].partition(".shared")[0]
        tensors |= {f"{layer}.{own}.gate_proj.weight": gate, f"{layer}.{own}.up_proj.weight": up}
    return permuted(config, tensors)


def internlm2(config: dict, tensors: Tensors) -> Tensors:
    for name in [n for n in tensors if "wqkv" in n]:
        joint = tensors.pop(name)
        rows = joint.reshape(2, 5, 16, *joint.shape[1:])
        parts = {"q_proj": rows[:, :3], "k_proj": rows[:, 3:4], "v_proj": rows[:, 4:]}
        for part, values in parts.items():
            own = name.replace("attention.wqkv", f"self_attn.{part}")
            tensors[own] = values.reshape(-1, *joint.shape[1:])
    return permuted(config, tensors)


def gpt2(config: dict, tensors: Tensors) -> Tensors:
    wide = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    return {n: t.T.copy() if n.endswith(wide) else t for n, t in tensors.items()}


def neox(config: dict, tensors: Tensors) -> Tensors:
    for name in [n for n in tensors if "query_key_value" in n]:
        rows = tensors[name].reshape(6, 3, 16, *tensors[name].shape[1:])
        tensors[name] = rows.swapaxes(0, 1).reshape(tensors[name].shape)
    return tensors


def plain(config: dict, tensors: Tensors) -> Tensors:
    return tensors


NORM = {"attention.layer_norm_epsilon": 1e-5}
# By the family's name in `test_decoder` or `test_layouts`: architecture, converter, metadata.
FAMILIES: dict[str, tuple[MODEL_ARCH, Callable[[dict, Tensors], Tensors], dict]] = {
    "olmo": (MODEL_ARCH.OLMO, permuted, {"attention.clamp_kqv": 0.3}),
    "olmo3": (MODEL_ARCH.OLMO2, plain, {
        "attention.sliding_window": 9, "rope.freq_base": 500000.0,
        "attention.sliding_window_pattern": [True, True, True, False],
    }),
    "exaone4": (MODEL_ARCH.EXAONE4, plain, {
        "attention.sliding_window": 9,
        "attention.sliding_window_pattern": [True, True, True, False],
    }),
    "hunyuan": (MODEL_ARCH.HUNYUAN_DENSE, plain, {"rope.freq_base": 10000.0 * 50.0 ** (16 / 14)}),
    "internlm2": (MODEL_ARCH.INTERNLM2, internlm2, {"rope.freq_base": 5000.0}),
    "exaone": (MODEL_ARCH.EXAONE, plain, {"rope.freq_base": 5000.0}),
    "gpt2": (MODEL_ARCH.GPT2, gpt2, NORM | {
        "feed_forward_length": 384, "attention.head_count_kv": 6}),
    "gpt-neox": (MODEL_ARCH.GPTNEOX, neox, NORM | {
        "rope.dimension_count": 4, "use_parallel_residual": True}),
    "llama4": (MODEL_ARCH.LLAMA4, joint_experts, {
        "expert_count": 4, "expert_used_count": 1, "expert_feed_forward_length": 32,
        "feed_forward_length": 80, "interleave_moe_layer_step": 2}),
    "deepseek-v2": (MODEL_ARCH.DEEPSEEK2, latent, {
        "attention.head_count_kv": 1, "attention.key_length": 40, "attention.value_length": 32,
        "attention.key_length_mla": 32, "attention.value_length_mla": 16,
        "attention.kv_lora_rank": 32, "rope.dimension_count": 8, "expert_count": 8,
        "expert_used_count": 3, "expert_feed_forward_length": 32, "leading_dense_block_count": 3,
        "expert_weights_scale": 1.5}),
    "deepseek-v3": (MODEL_ARCH.DEEPSEEK2, latent, {
        "attention.head_count_kv": 1, "attention.key_length": 40, "attention.value_length": 32,
        "attention.key_length_mla": 32, "attention.value_length_mla": 16,
        "attention.kv_lora_rank": 32, "attention.q_lora_rank": 32, "rope.dimension_count": 8,
        "expert_count": 8, "expert_used_count": 3, "expert_feed_forward_length": 32,
        "leading_dense_block_count": 1, "expert_weights_scale": 1.5,
        "expert_weights_norm": True, "expert_shared_count": 1, "expert_group_count": 4,
        "expert_group_used_count": 2, "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 64, "rope.scaling.yarn_log_multiplier": 0.1}),
    "gpt-oss": (MODEL_ARCH.GPT_OSS, joint_experts, {
        "expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 80,
        "attention.sliding_window": 9, "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 64}),
    "phimoe": (MODEL_ARCH.PHIMOE, stacked, {
        "expert_count": 4, "expert_used_count": 2, "rope.dimension_count": 8}),
    "granite-moe": (MODEL_ARCH.GRANITE_MOE, granite, {
        "expert_count": 4, "expert_used_count": 2, "embedding_scale": 3.0, "residual_scale": 0.3}),
    "granite-moe-shared": (MODEL_ARCH.GRANITE_MOE, granite, {
        "expert_count": 4, "expert_used_count": 2, "feed_forward_length": 32}),
    "glm4-moe": (MODEL_ARCH.GLM4_MOE, stacked, {
        "expert_count": 8, "expert_used_count": 3, "expert_feed_forward_length": 32,
        "expert_shared_count": 1, "leading_dense_block_count": 1, "expert_gating_func": 2,
        "expert_weights_scale": 1.5, "expert_weights_norm": True, "rope.dimension_count": 8,
        "expert_group_count": 4, "expert_group_used_count": 2}),
    "ernie-moe": (MODEL_ARCH.ERNIE4_5_MOE, stacked, {
        "expert_count": 6, "expert_used_count": 2, "expert_feed_forward_length": 32,
        "leading_dense_block_count": 1, "interleave_moe_layer_step": 1}),
}  # fmt: skip


# Keys that files do not have are those of the models that are out.
CHANGES = {
    "llama4": {
        "floor_scale": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "phimoe": {"router_jitter_noise": 0.01},
}


def metadata_of(config: dict) -> dict:
    heads = config.get("num_attention_heads", config.get("n_head"))
    theta = (config.get("rope_parameters") or {}).get("rope_theta", config.get("rope_theta"))
    return {
        "context_length": config.get("max_position_embeddings", config.get("n_positions")),
        "embedding_length": config.get("hidden_size", config.get("n_embd")),
        "block_count": next(
            config[key] for key in ("num_hidden_layers", "n_layer", "num_layers") if key in config
        ),
        "feed_forward_length": config.get("intermediate_size", 1),
        "attention.head_count": heads,
        "attention.head_count_kv": config.get("num_key_value_heads") or heads,
        "attention.layer_norm_rms_epsilon": config.get(
            "layer_norm_epsilon", config.get("rms_norm_eps", 1e-5)
        ),
        "rope.freq_base": theta or 10000.0,
    }


def write(directory: Path, family: str, kind: str = "F32", **changes: object) -> Path:
    """The model of `directory` as a GGUF file with matrices of a type, and `changes` of keys."""
    arch, convert, own = FAMILIES[family]
    config = json.loads((directory / "config.json").read_text())
    name, path = gguf.MODEL_ARCH_NAMES[arch], directory / f"{kind}.gguf"
    metadata = metadata_of(config) | own
    if config.get("head_dim") and "attention.key_length" not in own:
        metadata["attention.key_length"] = config["head_dim"]
    if family == "phimoe":
        metadata |= {"rope.scaling.original_context_length": 256, "rope.scaling.attn_factor": 1.2}
    metadata |= {key.replace("__", "."): value for key, value in changes.items()}
    writer = gguf.GGUFWriter(path, name)
    for key, value in metadata.items():
        writer.add_key_value(f"{name}.{key}", value, *_types(value))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([str(i) for i in range(160)])
    names = gguf.get_tensor_name_map(arch, metadata_of(config)["block_count"])
    stored = {n: t.float().numpy() for n, t in load_file(directory / "model.safetensors").items()}
    for theirs, tensor in convert(config, stored).items():
        # The map has no name for a correction, nor for what has no kind.
        theirs = theirs.replace("e_score_correction_bias", "e_score_correction.bias")
        found = names.get_name(theirs, try_suffixes=(".weight", ".bias"))
        assert found is not None, theirs
        values = np.ascontiguousarray(tensor.squeeze(0) if "moe_statics" in theirs else tensor)
        floats = tensor.ndim < 2 or tensor.shape[-1] % 32 or found.endswith("bias")
        if kind == "F32" or floats or "gate_inp" in found:
            writer.add_tensor(found, values)
            continue
        quantized = GGMLQuantizationType[kind]
        writer.add_tensor(found, gguf.quantize(values, quantized), raw_dtype=quantized)
    if family == "phimoe":
        for length in ("short", "long"):
            factors = np.array(config["rope_parameters"][f"{length}_factor"], dtype=np.float32)
            writer.add_tensor(f"rope_factors_{length}.weight", factors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _types(value: object) -> tuple:
    kinds = gguf.GGUFValueType
    if isinstance(value, list):
        return kinds.ARRAY, kinds.BOOL
    if isinstance(value, int) and value < 0:
        return (kinds.INT32,)
    known = {bool: kinds.BOOL, int: kinds.UINT32, float: kinds.FLOAT32, str: kinds.STRING}
    return (known[type(value)],)


@pytest.fixture(scope="module", params=FAMILIES)
def directory(request, tmp_path_factory) -> tuple[str, Path]:
    made = tmp_path_factory.mktemp(request.param)
    if request.param in CONFIGS:
        state = state_of(request.param)
        save_file(state, made / "model.safetensors", metadata={"format": "pt"})
        (made / "config.json").write_text(json.dumps(CONFIGS[request.param]))
    else:
        random_model(request.param, made)
        path = made / "config.json"
        raw = json.loads(path.read_text()) | CHANGES.get(request.param, {})
        path.write_text(json.dumps(raw))
    return request.param, made


def load(path: Path, dtype: torch.dtype = torch.float32, operations=None):
    model, _ = load_model(path, device="cpu", dtype=dtype, quantization=None, operations=operations)
    return model


@torch.no_grad()
def logits(model) -> torch.Tensor:
    ids = torch.tensor(random_tokens(1, 40))
    return model.logits(model(ids, PackedCausal(rows=1, length=40)))


def test_a_file_of_floats_has_the_logits_of_the_directory(directory):
    family, made = directory
    expected = logits(load(made))
    torch.testing.assert_close(logits(load(write(made, family))), expected, atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.skipif(not cpu.available(), reason="kernels not built")
def test_blocks_are_read_as_they_are(directory):
    family, made = directory
    path = write(made, family, "Q8_0")
    served, exact = load(path, torch.bfloat16, cpu), logits(load(made))
    close = torch.nn.functional.cosine_similarity(logits(load(path)), exact)
    assert close.mean() > 0.98 and served.config.layers > 1


@pytest.mark.slow
def test_values_that_are_not_what_they_should_be_are_refused_in_one_line(directory):
    family, made = directory
    config = json.loads((made / "config.json").read_text())
    for key in metadata_of(config) | FAMILIES[family][2]:
        for value in ("x", [True, False, True], -1, 0, (1 << 31) - 1, float("nan"), 1e30, True):
            path = write(made, family, **{key.replace(".", "__"): value})
            try:
                load_config(path)
            except ModelError as error:
                assert str(error).isprintable() and path.name in str(error)
