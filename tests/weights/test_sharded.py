"""The parts of a model's matrices, read from every kind of file, against the whole ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hagane.models.config import ModelConfig, Quantization
from hagane.models.sharding import Shard
from hagane.models.spec import parts_of, projections
from hagane.system.errors import ConfigurationError
from hagane.weights.load import load_model
from hagane.weights.opening import open_weights
from hagane.weights.quantize import quantize_directory
from hagane.weights.sharded import ShardedSource
from hagane.weights.sources.config import load_config
from hagane.weights.sources.grouped_rows import GroupedRows
from hagane.weights.sources.source import Rows
from torch import Tensor

from tests.support.gguf import write_gguf
from tests.support.quantized import KINDS, write_quantized

RANKS = 2
GGUF = ("F32", "Q8_0", "Q4_0")


def floats(rows: Rows) -> Tensor:
    return torch.cat([block.float() for block in rows.split(7)])


def kept(rows: Rows) -> Tensor | None:
    """What the kernels get of a matrix that keeps its bits."""
    if not isinstance(rows, GroupedRows) or rows.form is None or rows.input_order is not None:
        return None
    groups = [rows.groups(start, min(start + 5, len(rows))) for start in range(0, len(rows), 5)]
    return torch.cat([found.dequantize().view(-1, rows.shape[1]) for found in groups])


@pytest.mark.parametrize("kind", [*GGUF, "awq", "gptq-ordered", "w8a8"])
def test_parts_make_up_the_matrices_of_a_file(tiny_model_dir, tmp_path, kind):
    path = tmp_path / "model.gguf"
    if kind in GGUF:
        write_gguf(tiny_model_dir, path, kind)
    else:
        write_quantized(tiny_model_dir, path := tmp_path / kind, KINDS[kind])
    config, source = open_weights(path)
    ranks = [Shard(rank, RANKS) for rank in range(RANKS)]
    shapes = [_shapes(shard.config(config)) for shard in ranks]
    whole = _shapes(config)
    for name, shape in whole.items():
        expected = floats(source.read(name, shape))
        axis = 0 if shapes[0][name][0] < shape[0] else 1
        pieces = []
        for shard, own in zip(ranks, shapes, strict=True):
            part = ShardedSource(open_weights(path)[1], config, shard).read(name, own[name])
            assert part.shape == own[name]
            pieces.append(floats(part))
            if (bits := kept(part)) is not None:
                assert torch.allclose(bits, pieces[-1], atol=1e-6)
        assert torch.equal(torch.cat(pieces, dim=axis), expected), name


def _shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    return {
        f"model.{part}.weight": (rows, projection.columns)
        for path, projection in projections(config)
        for part, rows in parts_of(path, projection).items()
    }


def test_stored_codes_are_divided_as_they_are(tiny_model_dir, tmp_path):
    plain = Quantization("int8")
    quantize_directory(tiny_model_dir, tmp_path / "plain", plain)
    whole, parts = _load(tmp_path / "plain", None), [_load(tmp_path / "plain", r) for r in (0, 1)]
    down = [part.model.layers[0].mlp.down_proj for part in parts]
    codes = torch.cat([layer.weight_int8 for layer in down], dim=1)
    assert torch.equal(codes, whole.model.layers[0].mlp.down_proj.weight_int8)
    keys = [part.model.layers[1].self_attn.qkv_proj.scale[32:48] for part in parts]
    assert torch.equal(torch.cat(keys), whole.model.layers[1].self_attn.qkv_proj.scale[64:96])


def test_stored_codes_that_were_rotated_across_ranks_are_refused(tiny_model_dir, tmp_path):
    quantize_directory(tiny_model_dir, tmp_path / "turned", Quantization("int8", rotated=True))
    with pytest.raises(ConfigurationError, match=r"self_attn\.o_proj of 64 inputs"):
        _load(tmp_path / "turned", 0)


def _load(directory: Path, rank: int | None):
    shard = None if rank is None else Shard(rank, RANKS)
    stored = load_config(directory).quantization
    model, _ = load_model(
        directory, device="cpu", dtype=torch.float32, quantization=stored, shard=shard
    )
    return model
