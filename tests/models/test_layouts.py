"""Llamas under other names: InternLM 2, Baichuan 2, EXAONE 3, and text models of larger ones.

transformers has no code for the first three: each is compared with the published architecture in
plain torch, on the state dict as it is published.
"""

from __future__ import annotations

import json
import random

import pytest
import torch
from hagane.kernels import cpu
from hagane.models.attention import PackedCausal
from hagane.models.config import Quantization
from hagane.models.families import read_config, read_config_file
from hagane.system.errors import ModelError
from hagane.weights.load import load_model, save_model
from hagane.weights.quantize import quantize_directory
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import AutoModelForCausalLM

from tests.models.test_decoder import (
    PagedRun,
    load,
    random_model,
    random_tokens,
    run_in_random_chunks,
)

HIDDEN, INNER, LAYERS, HEADS, VOCABULARY, HEAD_DIM = 96, 80, 2, 6, 160, 16
SHARED = {
    "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": INNER,
    "num_attention_heads": HEADS, "max_position_embeddings": 256, "rms_norm_eps": 1e-6,
    "num_hidden_layers": LAYERS, "tie_word_embeddings": False, "torch_dtype": "float32",
    "auto_map": {"AutoModelForCausalLM": "modeling.Model"},
}  # fmt: skip
CONFIGS = {
    "internlm2": SHARED | {
        "architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "bias": True,
        "num_key_value_heads": 2, "rope_theta": 5000.0, "hidden_act": "silu",
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    },
    "baichuan2": SHARED | {"architectures": ["BaichuanForCausalLM"], "model_type": "baichuan"},
    "exaone": {key: value for key, value in SHARED.items() if key != "num_hidden_layers"} | {
        "architectures": ["ExaoneForCausalLM"], "model_type": "exaone", "num_layers": LAYERS,
        "num_key_value_heads": 2, "activation_function": "silu", "layer_norm_epsilon": 1e-5,
        "rope_theta": 5000.0,
    },
}  # fmt: skip


def state_of(family: str) -> dict[str, Tensor]:
    """Random weights under the names, and in the shapes, that the family publishes."""
    torch.manual_seed(0)
    kv = HEADS * HEAD_DIM if family == "baichuan2" else 2 * HEAD_DIM
    norm, table = (HIDDEN,), (VOCABULARY, HIDDEN)
    inner, output = (INNER, HIDDEN), (HIDDEN, INNER)
    square, narrow, joint = (HIDDEN, HIDDEN), (kv, HIDDEN), (HIDDEN + 2 * kv, HIDDEN)
    layer = {
        "internlm2": {
            "attention_norm": norm, "ffn_norm": norm, "attention.wqkv": joint,
            "attention.wo": square, "feed_forward.w1": inner, "feed_forward.w3": inner,
            "feed_forward.w2": output,
        },
        "baichuan2": {
            "input_layernorm": norm, "post_attention_layernorm": norm, "self_attn.W_pack": joint,
            "self_attn.o_proj": square, "mlp.gate_proj": inner, "mlp.up_proj": inner,
            "mlp.down_proj": output,
        },
        "exaone": {
            "ln_1": norm, "ln_2": norm, "attn.attention.q_proj": square,
            "attn.attention.k_proj": narrow, "attn.attention.v_proj": narrow,
            "attn.attention.out_proj": square, "mlp.c_fc_0": inner, "mlp.c_fc_1": inner,
            "mlp.c_proj": output,
        },
    }[family]  # fmt: skip
    embedding, last, head, prefix = {
        "internlm2": ("model.tok_embeddings", "model.norm", "output", "model.layers"),
        "baichuan2": ("model.embed_tokens", "model.norm", "lm_head", "model.layers"),
        "exaone": ("transformer.wte", "transformer.ln_f", "lm_head", "transformer.h"),
    }[family]
    shapes = {embedding: table, last: norm, head: table}
    for number in range(LAYERS):
        shapes |= {f"{prefix}.{number}.{name}": shape for name, shape in layer.items()}
    state = {
        f"{name}.weight": torch.randn(shape) * 0.1 + (1.0 if len(shape) == 1 else 0.0)
        for name, shape in shapes.items()
    }
    if family == "internlm2":
        for name in [n for n in state if n.endswith(("wqkv.weight", "wo.weight"))]:
            state[name.replace("weight", "bias")] = torch.randn(len(state[name])) * 0.2
    return state


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def turn(x: Tensor, theta: float) -> Tensor:
    """[tokens, heads, head_dim] at positions 0, 1, ..."""
    frequencies = theta ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    angles = (torch.arange(len(x))[:, None] * frequencies).repeat(1, 2)[:, None]
    first, second = x.chunk(2, dim=-1)
    return x * angles.cos() + torch.cat((-second, first), dim=-1) * angles.sin()


def attend(q: Tensor, k: Tensor, v: Tensor, theta: float) -> Tensor:
    """q, k, v [tokens, heads, head_dim], of which keys and values have fewer heads."""
    group = q.shape[1] // k.shape[1]
    q, k = turn(q, theta), turn(k, theta)
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) / HEAD_DIM**0.5
    future = torch.ones(len(q), len(q)).triu(1).bool()
    weights = scores.masked_fill(future, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v).flatten(1)


def linear(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def swiglu(state: dict[str, Tensor], names: tuple[str, str, str], x: Tensor) -> Tensor:
    gate, up, down = names
    return linear(state, down, F.silu(linear(state, gate, x)) * linear(state, up, x))


def internlm2(state: dict[str, Tensor], ids: Tensor) -> Tensor:
    x = state["model.tok_embeddings.weight"][ids]
    for number in range(LAYERS):
        at = f"model.layers.{number}"
        normed = rms(x, state[f"{at}.attention_norm.weight"], 1e-6)
        # Of every key head its three query heads, the key and the value.
        rows = linear(state, f"{at}.attention.wqkv", normed).view(len(x), 2, 5, HEAD_DIM)
        q, k, v = rows[:, :, :3].flatten(1, 2), rows[:, :, 3], rows[:, :, 4]
        x = x + linear(state, f"{at}.attention.wo", attend(q, k, v, 5000.0))
        names = tuple(f"{at}.feed_forward.w{i}" for i in (1, 3, 2))
        x = x + swiglu(state, names, rms(x, state[f"{at}.ffn_norm.weight"], 1e-6))
    return rms(x, state["model.norm.weight"], 1e-6) @ state["output.weight"].t()


def baichuan2(state: dict[str, Tensor], ids: Tensor) -> Tensor:
    x = state["model.embed_tokens.weight"][ids]
    for number in range(LAYERS):
        at = f"model.layers.{number}"
        normed = rms(x, state[f"{at}.input_layernorm.weight"], 1e-6)
        q, k, v = linear(state, f"{at}.self_attn.W_pack", normed).view(len(x), 3, 6, 16).unbind(1)
        x = x + linear(state, f"{at}.self_attn.o_proj", attend(q, k, v, 10000.0))
        names = tuple(f"{at}.mlp.{name}_proj" for name in ("gate", "up", "down"))
        x = x + swiglu(state, names, rms(x, state[f"{at}.post_attention_layernorm.weight"], 1e-6))
    head = state["lm_head.weight"]
    return rms(x, state["model.norm.weight"], 1e-6) @ (head / head.norm(dim=1, keepdim=True)).t()


def exaone(state: dict[str, Tensor], ids: Tensor) -> Tensor:
    x = state["transformer.wte.weight"][ids]
    for number in range(LAYERS):
        at = f"transformer.h.{number}"
        normed = rms(x, state[f"{at}.ln_1.weight"], 1e-5)
        q, k, v = (
            linear(state, f"{at}.attn.attention.{part}_proj", normed).view(len(x), -1, HEAD_DIM)
            for part in "qkv"
        )
        x = x + linear(state, f"{at}.attn.attention.out_proj", attend(q, k, v, 5000.0))
        names = (f"{at}.mlp.c_fc_0", f"{at}.mlp.c_fc_1", f"{at}.mlp.c_proj")
        x = x + swiglu(state, names, rms(x, state[f"{at}.ln_2.weight"], 1e-5))
    return rms(x, state["transformer.ln_f.weight"], 1e-5) @ state["lm_head.weight"].t()


REFERENCES = {"internlm2": internlm2, "baichuan2": baichuan2, "exaone": exaone}


@pytest.fixture(scope="module", params=CONFIGS)
def published(request, tmp_path_factory):
    """A directory as the family publishes it, its name and its weights."""
    directory, state = tmp_path_factory.mktemp(request.param), state_of(request.param)
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(CONFIGS[request.param]))
    return directory, REFERENCES[request.param], state


@pytest.mark.skipif(not cpu.available(), reason="kernels not built")
def test_batches_of_chunks_and_decodes_match_the_published_architecture(published):
    directory, reference, state = published
    sequences = {key: random_tokens(10 + key, 9 + 17 * key) for key in range(3)}
    run = PagedRun(load(directory, cpu))
    for key, logits in run_in_random_chunks(run, sequences, random.Random(3)).items():
        expected = reference(state, torch.tensor(sequences[key]))
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_what_is_saved_is_a_llama_that_transformers_reads(published, tmp_path):
    directory, reference, state = published
    save_model(load(directory, None), tmp_path, dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(theirs).__name__ == "LlamaForCausalLM"
    ids = torch.tensor(random_tokens(1, 30))
    with torch.no_grad():
        logits = theirs(ids[None]).logits[0]
    torch.testing.assert_close(logits, reference(state, ids), atol=1e-4, rtol=0)
    assert read_config_file(tmp_path) == read_config(read_config_file(directory).to_dict())


@torch.no_grad()
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_it_is_quantized_when_it_is_loaded_and_before(published, tmp_path, kind):
    directory, reference, state = published
    ids, quantization = torch.tensor(random_tokens(2, 30)), Quantization(kind, 32, rotated=True)
    quantize_directory(directory, tmp_path / "small", quantization)
    stored = read_config_file(tmp_path / "small").quantization
    found = []
    for path, wanted in ((directory, quantization), (tmp_path / "small", stored)):
        model = load(path, None, wanted)
        found.append(model.logits(model(ids, PackedCausal(rows=1, length=30))))
    assert torch.equal(*found)
    close = F.cosine_similarity(found[0], reference(state, ids))
    assert close.mean() > (0.99 if kind == "int8" else 0.95)


def test_positions_that_bias_scores_are_refused():
    raw = {**CONFIGS["baichuan2"], "model_max_length": 4096}
    del raw["max_position_embeddings"]
    with pytest.raises(ModelError, match="ALiBi"):
        read_config(raw)


@pytest.mark.parametrize("missing", ["model.layers.1.attention.wqkv.weight", "output.weight"])
def test_a_tensor_that_is_missing_is_named(tmp_path, missing):
    state = state_of("internlm2")
    del state[missing]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["internlm2"]))
    with pytest.raises(ModelError, match="is missing"):
        load_model(tmp_path, device="cpu", dtype=torch.float32, quantization=None)


MULTIMODAL = {
    "gemma3": ("Gemma3ForConditionalGeneration", {
        "model_type": "gemma3_text", "head_dim": 16, "num_attention_heads": 6,
        "num_key_value_heads": 2, "sliding_window": 9, "query_pre_attn_scalar": 30,
    }),
    "llama4": ("Llama4ForConditionalGeneration", {
        "model_type": "llama4_text", "head_dim": 16, "num_attention_heads": 6,
        "num_key_value_heads": 2, "num_local_experts": 4, "intermediate_size_mlp": 64,
    }),
    "mistral3": ("Mistral3ForConditionalGeneration", {
        "model_type": "mistral", "head_dim": 16, "num_attention_heads": 6,
        "num_key_value_heads": 2,
    }),
}  # fmt: skip
SIZES = {"vocab_size": 160, "hidden_size": 96, "intermediate_size": 64, "num_hidden_layers": 2,
         "max_position_embeddings": 256}  # fmt: skip


def test_names_may_leave_out_what_others_begin_with(tmp_path):
    random_model("gpt2", tmp_path / "long")
    tensors = load_file(tmp_path / "long" / "model.safetensors")
    short = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    # A mask, which is computed anew.
    short["h.0.attn.bias"] = torch.ones(1, 1, 8, 8)
    (tmp_path / "short").mkdir()
    save_file(short, tmp_path / "short" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "short" / "config.json").write_bytes(
        (tmp_path / "long" / "config.json").read_bytes()
    )
    states = [load(tmp_path / name, None).state_dict() for name in ("long", "short")]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


# How names of files begin, and of those that transformers saves.
@pytest.fixture(params=[(kind, nested) for kind in MULTIMODAL for nested in (True, False)])
def multimodal(request, tmp_path):
    """A directory with a text model and an encoder's tensors, and transformers' text model."""
    from transformers import AutoConfig

    kind, nested = request.param
    architecture, own = MULTIMODAL[kind]
    text = SIZES | own
    torch.manual_seed(0)
    config = AutoConfig.for_model(text.pop("model_type"), **text)
    theirs = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    old, new = ("", "language_model.") if nested else ("model.", "model.language_model.")
    renamed = {name.replace(old, new, 1): tensor for name, tensor in tensors.items()}
    renamed |= {"vision_tower.a.weight": torch.ones(2), "vision_model.b": torch.ones(2)}
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    raw = {
        "architectures": [architecture], "model_type": kind, "torch_dtype": "float32",
        "text_config": config.to_dict(), "vision_config": {"hidden_size": 8},
        "tie_word_embeddings": config.tie_word_embeddings,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(raw))
    return tmp_path, theirs


def test_the_text_model_of_a_larger_one_is_served(multimodal, tmp_path):
    directory, theirs = multimodal
    ids = torch.tensor(random_tokens(1, 30))
    model = load(directory, None)
    with torch.no_grad():
        expected = theirs(ids[None]).logits[0]
        logits = model.logits(model(ids, PackedCausal(rows=1, length=30)))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    save_model(model, tmp_path / "saved", dtype=torch.float32)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", attn_implementation="eager")
    assert type(again) is type(theirs)
    with torch.no_grad():
        torch.testing.assert_close(again(ids[None]).logits[0], expected, atol=1e-5, rtol=0)
