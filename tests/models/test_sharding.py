from __future__ import annotations

from dataclasses import replace

import pytest
from hagane.models.families import read_config
from hagane.models.sharding import Shard
from hagane.models.spec import projection_at
from hagane.system.errors import ConfigurationError

LLAMA = read_config(
    {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 160,
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "head_dim": 16,
        "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
    },
)  # fmt: skip


def rows(shard: Shard, path: str):
    projection = projection_at(LLAMA, path)
    assert projection is not None
    return shard.rows(projection)


def test_ranks_have_neighbouring_heads_and_features():
    first, second = Shard(0, 2), Shard(1, 2)
    part = second.config(LLAMA)
    assert (part.heads, part.kv_heads, part.intermediate_size, part.vocab_size) == (4, 1, 48, 80)
    # 8 heads of queries, 2 of keys, 2 of values, 16 features each.
    assert rows(first, "layers.0.self_attn.qkv_proj") == ((0, 64), (128, 144), (160, 176))
    assert rows(second, "layers.0.self_attn.qkv_proj") == ((64, 128), (144, 160), (176, 192))
    output = projection_at(LLAMA, "layers.0.self_attn.o_proj")
    assert output is not None
    assert second.columns(output) == (64, 128) and second.rows(output) == ((0, 64),)


def test_ranks_share_key_heads_where_there_are_fewer():
    assert Shard(3, 4).config(LLAMA).kv_heads == 1
    keys = [rows(Shard(rank, 4), "layers.0.self_attn.qkv_proj")[1] for rank in range(4)]
    assert keys == [(128, 144), (128, 144), (144, 160), (144, 160)]


def test_a_vocabulary_that_cannot_be_divided_is_whole_on_every_rank():
    odd = replace(LLAMA, vocab_size=161)
    assert Shard(1, 2).config(odd).vocab_size == 161
    assert Shard(1, 2).vocabulary(odd) == (0, 161)


@pytest.mark.parametrize(
    ("changes", "ranks", "named"),
    [
        ({}, 3, "does not divide the model's 8 attention heads"),
        ({"intermediate_size": 97}, 2, "97 inner features"),
        ({"heads": 12, "kv_heads": 3}, 2, "neither divides the model's 3 key and value heads"),
        ({"qk_norm": "width"}, 2, "normalises all heads"),
        ({"declared": False}, 2, "transformers' own"),
        ({"sinks": True}, 2, "are not divided"),
    ],
)
def test_sizes_that_cannot_be_divided_are_named(changes, ranks, named):
    with pytest.raises(ConfigurationError, match=named):
        Shard(0, ranks).config(replace(LLAMA, **changes))
