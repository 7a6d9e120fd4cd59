"""The projections that a layer declares: the one place that knows a layer's matrices.

Building, loading, saving, adapters and their banks, and estimates of cost iterate over these
declarations:

    for path, projection in projections(config):
        ...                         "layers.0.self_attn.qkv_proj", whose parts are q, k and v

The model fuses matrices that read the same input: fewer, larger products. Checkpoints and adapters
keep them apart. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hagane.models.config import ModelConfig


@dataclass(frozen=True)
class ProjectionSpec:
    """A linear layer [rows, columns]; `parts` are the rows of each matrix that is fused in it.

    Parts are in their order and named as in checkpoints.
    """

    columns: int
    parts: dict[str, int]
    bias: bool = False

    @property
    def rows(self) -> int:
        return sum(self.parts.values())

    def starts(self) -> dict[str, int]:
        """By part, the row at which it begins."""
        starts, start = {}, 0
        for name, rows in self.parts.items():
            starts[name] = start
            start += rows
        return starts


def layer_projections(config: ModelConfig) -> dict[str, ProjectionSpec]:
    """The projections of one layer, by their path within it."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    return {
        "self_attn.qkv_proj": ProjectionSpec(
            hidden, {"q_proj": queries, "k_proj": keys, "v_proj": keys}, bias=config.qkv_bias
        ),
        "self_attn.o_proj": ProjectionSpec(queries, {"o_proj": hidden}, bias=config.output_bias),
        "mlp.gate_up_proj": ProjectionSpec(
            hidden, {"gate_proj": inner, "up_proj": inner}, bias=config.mlp_bias
        ),
        "mlp.down_proj": ProjectionSpec(inner, {"down_proj": hidden}, bias=config.mlp_bias),
    }


def layer_norms(config: ModelConfig) -> dict[str, int]:
    """Features of each norm of one layer, by its path within it."""
    norms = {
        "input_layernorm": config.hidden_size,
        "post_attention_layernorm": config.hidden_size,
    }
    if config.qk_norm:
        norms |= {"self_attn.q_norm": config.head_dim, "self_attn.k_norm": config.head_dim}
    return norms


def checkpoint_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of an unquantized checkpoint, by its name."""
    table = (config.vocab_size, config.hidden_size)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": table}
    for layer in range(config.layers):
        for path, features in layer_norms(config).items():
            shapes[f"model.layers.{layer}.{path}.weight"] = (features,)
    for path, projection in projections(config):
        for part, rows in projection.parts.items():
            name = f"model.{sibling(path, part)}"
            shapes[f"{name}.weight"] = (rows, projection.columns)
            if projection.bias:
                shapes[f"{name}.bias"] = (rows,)
    shapes["model.norm.weight"] = (config.hidden_size,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = table
    return shapes


def projections(config: ModelConfig) -> Iterator[tuple[str, ProjectionSpec]]:
    """Every projection by its path below the decoder, such as `layers.0.mlp.down_proj`."""
    declared = layer_projections(config)
    for layer in range(config.layers):
        for path, projection in declared.items():
            yield f"layers.{layer}.{path}", projection


def linear_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(rows, columns) of every matrix apart, by its path, such as `layers.0.self_attn.q_proj`."""
    return {
        sibling(path, part): (rows, projection.columns)
        for path, projection in projections(config)
        for part, rows in projection.parts.items()
    }


def parts_at(config: ModelConfig, path: str) -> dict[str, int] | None:
    """Rows of each part of the projection at `path`, by path; None where there is none."""
    _, _, within = path.removeprefix("layers.").partition(".")
    projection = layer_projections(config).get(within)
    if projection is None:
        return None
    return {sibling(path, part): rows for part, rows in projection.parts.items()}


def sibling(path: str, part: str) -> str:
    """The path of a part of the projection at `path`."""
    return f"{path.rpartition('.')[0]}.{part}"
