"""Keys without what all of them have in common."""

from __future__ import annotations

import pytest
import torch
from hagane.kernels import cpu
from hagane.models.attention import PackedCausal, Paged
from hagane.models.decoder import Transformer
from hagane.models.families import read_config
from hagane.weights.load import load_model, save_model

from tests.support.paging import layout_of

TOKENS, BLOCK, BLOCKS = 200, 16, 16
CONFIG = read_config(
    {
        "architectures": ["Qwen2ForCausalLM"],
        "vocab_size": 200,
        "hidden_size": 128,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rope_theta": 1000000.0,
    }
)


@pytest.fixture
def directory(tmp_path):
    """As in Qwen2.5, some features of the key bias are far larger than keys are."""
    model = Transformer(CONFIG)
    model.init_weights(torch.Generator().manual_seed(1))
    with torch.no_grad():
        for layer in model.model.layers:
            queries, keys, _ = layer.self_attn.qkv_proj.weight.split([128, 64, 64])
            queries.mul_(8)
            keys.mul_(8)
            bias = layer.self_attn.qkv_proj.bias[128:192].view(2, 32)
            bias[0, 15], bias[1, 30] = 150.0, -90.0
    save_model(model, tmp_path, dtype=torch.float32)
    return tmp_path


@pytest.mark.skipif(not cpu.available(), reason="kernels not built")
@pytest.mark.parametrize(
    ("kept", "tolerance"), [(torch.float32, 2e-4), (torch.int8, 0.02)], ids=["float32", "int8"]
)
def test_large_key_biases_cost_nothing(directory, kept, tolerance):
    cpu.start(1)
    ids = torch.arange(TOKENS) * 7 % 200
    options = {"device": "cpu", "dtype": torch.float32, "quantization": None}
    exact, _ = load_model(directory, **options)
    served, _ = load_model(directory, **options, operations=cpu)
    shape = BLOCKS, BLOCK, CONFIG.kv_heads, CONFIG.head_dim
    caches = [cpu.allocate_cache(*shape, kept, torch.device("cpu")) for _ in range(2)]
    layout = layout_of([TOKENS], [TOKENS], BLOCK, BLOCKS)
    with torch.no_grad():
        expected = exact(ids, PackedCausal(rows=1, length=TOKENS))
        hidden = served(ids, Paged(torch.arange(TOKENS), layout, caches, cpu))
    assert (hidden - expected).norm() <= tolerance * expected.norm()
