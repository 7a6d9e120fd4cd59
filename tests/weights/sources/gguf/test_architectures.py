"""Mixtures of experts in GGUF files: all experts of a layer in one tensor."""

from __future__ import annotations

import json
import re
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from hagane.kernels import cpu
from hagane.models.attention import PackedCausal
from hagane.models.moe import NativeExperts
from hagane.system.errors import ModelError
from hagane.weights.load import load_model
from safetensors.torch import load_file

from tests.support.gguf import gguf_name, interleaved
from tests.support.mixture import make_mixture

ARCHITECTURES = {
    "qwen3_moe": "qwen3moe", "qwen2_moe": "qwen2moe", "mixtral": "llama", "olmoe": "olmoe",
}  # fmt: skip
CHANGES = {
    # The keys that files do not have are those of the models that are out.
    "qwen3_moe": {"norm_topk_prob": True},
    "qwen2_moe": {"hidden_size": 64, "shared_expert_intermediate_size": 32},
    "mixtral": {},
    "olmoe": {},
}
_EXPERT = re.compile(r"(.*)\.(?:mlp|block_sparse_moe)\.experts\.(\d+)\.(\w+)\.weight")
_NAMES = {
    "gate_proj": "ffn_gate_exps", "up_proj": "ffn_up_exps", "down_proj": "ffn_down_exps",
    "w1": "ffn_gate_exps", "w3": "ffn_up_exps", "w2": "ffn_down_exps",
    "mlp.gate.": "ffn_gate_inp.", "block_sparse_moe.gate.": "ffn_gate_inp.",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp", "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp", "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
}  # fmt: skip


def tensors_of(directory: Path, *, permuted: bool) -> dict[str, np.ndarray]:
    """The directory's tensors as a converter names and stacks them."""
    config = json.loads((directory / "config.json").read_text())
    stacks: dict[str, list[np.ndarray]] = {}
    tensors: dict[str, np.ndarray] = {}
    stored = load_file(directory / "model.safetensors")
    for name in sorted(stored, key=lambda n: [int(p) if p.isdigit() else p for p in n.split(".")]):
        weight = stored[name].float().numpy()
        expert = _EXPERT.fullmatch(name)
        if expert is not None:
            stack = f"{gguf_name(expert[1])}.{_NAMES[expert[3]]}.weight"
            stacks.setdefault(stack.replace("model.layers", "blk"), []).append(weight)
            continue
        for theirs, ours in _NAMES.items():
            if "." in theirs:
                name = name.replace(theirs, ours)
        if permuted and ("q_proj" in name or "k_proj" in name):
            heads = "num_attention_heads" if "q_proj" in name else "num_key_value_heads"
            weight = interleaved(weight, config[heads])
        tensors[gguf_name(name)] = weight[0] if "gate_inp_shexp" in name else weight
    return tensors | {name: np.stack(parts) for name, parts in stacks.items()}


def write(directory: Path, path: Path, kind: str = "F32", **changes: int) -> Path:
    config = json.loads((directory / "config.json").read_text())
    name = ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(path, name)
    inner = config.get("moe_intermediate_size", config["intermediate_size"])
    experts = config.get("num_experts") or config["num_local_experts"]
    numbers = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "expert_feed_forward_length": inner,
        "expert_count": experts,
        "expert_used_count": config["num_experts_per_tok"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
    }
    for key, value in (numbers | changes).items():
        writer.add_uint32(f"{name}.{key}", value)
    writer.add_float32(f"{name}.attention.layer_norm_rms_epsilon", config["rms_norm_eps"])
    writer.add_float32(f"{name}.rope.freq_base", config["rope_parameters"]["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([str(i) for i in range(config["vocab_size"])])
    for tensor_name, tensor in tensors_of(directory, permuted=name == "llama").items():
        if tensor.ndim < 2 or kind == "F32" or "gate_inp" in tensor_name:
            writer.add_tensor(tensor_name, tensor)
            continue
        stored = GGMLQuantizationType[kind]
        writer.add_tensor(tensor_name, gguf.quantize(tensor, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module", params=ARCHITECTURES)
def directory(request, tmp_path_factory) -> Path:
    changes = CHANGES[request.param]
    return make_mixture(tmp_path_factory.mktemp(request.param), request.param, **changes)


def load(path: Path, dtype: torch.dtype = torch.float32, operations=None):
    model, _ = load_model(path, device="cpu", dtype=dtype, quantization=None, operations=operations)
    return model


def test_a_file_of_floats_is_the_directory(directory, tmp_path):
    expected, got = load(directory), load(write(directory, tmp_path / "x.gguf"))
    assert got.config.layer_specs == expected.config.layer_specs
    state = got.state_dict()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, state[name]), name


@pytest.mark.skipif(not cpu.available(), reason="kernels not built")
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_experts_are_served_with_the_bits_that_they_have(directory, tmp_path, kind):
    path = write(directory, tmp_path / "x.gguf", kind)
    kept = load(path, torch.bfloat16, cpu)
    experts = kept.model.layers[1].mlp.experts
    assert isinstance(experts, NativeExperts)
    tokens = torch.arange(3, 27)
    context = PackedCausal(rows=1, length=24)
    plain = load(path)
    x = torch.randn(24, 64)
    chosen = torch.randint(0, 4, (24, 2), dtype=torch.int32)
    chosen[:, 1] = (chosen[:, 0] + 1) % 4
    weights = torch.rand(24, 2)
    with torch.no_grad():
        expected = plain.model.layers[1].mlp.experts(x, chosen, weights, None)
    got = experts(x.bfloat16(), chosen, weights, None).float()
    assert torch.nn.functional.cosine_similarity(got, expected).min() > 0.999
    assert plain.logits(plain(tokens, context)).isfinite().all()


def test_counts_that_do_not_fit_the_tensors_are_refused(tmp_path):
    source = make_mixture(tmp_path / "source", "qwen3_moe")
    for changes, message in (
        ({"expert_count": 9}, "is missing"),
        ({"expert_count": 7}, "experts|unexpected|shape"),
        ({"expert_count": 1 << 30}, "num_experts"),
        ({"expert_used_count": 11}, "of 8 experts"),
    ):
        with pytest.raises(ModelError, match=message):
            load(write(source, tmp_path / "x.gguf", **changes))
