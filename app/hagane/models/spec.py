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

_LLAMA = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "o_proj": ("o_proj",),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "down_proj": ("down_proj",),
}


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
    gate = {"gate_proj": inner} if config.gated else {}
    stored = part_names(config)

    def declare(name: str, columns: int, bias: bool, parts: dict[str, int]) -> ProjectionSpec:
        if name in config.fused:
            parts = {name: sum(parts.values())}
        return ProjectionSpec(
            columns, {stored.get(part, part): rows for part, rows in parts.items()}, bias
        )

    apart = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
    return {
        "self_attn.qkv_proj": declare("qkv_proj", hidden, config.qkv_bias, apart),
        "self_attn.o_proj": declare("o_proj", queries, config.output_bias, {"o_proj": hidden}),
        "mlp.gate_up_proj": declare(
            "gate_up_proj", hidden, config.mlp_bias, {**gate, "up_proj": inner}
        ),
        "mlp.down_proj": declare("down_proj", inner, config.mlp_bias, {"down_proj": hidden}),
    }


def part_names(config: ModelConfig) -> dict[str, str]:
    """The names that checkpoints and adapters give to Llama's matrices."""
    found = {}
    for fused, parts in _LLAMA.items():
        for part in parts:
            found[part] = fused if fused in config.fused else config.names.get(part, part)
    if not config.gated and "gate_up_proj" not in config.fused:
        del found["gate_proj"]
    return found


def layer_norms(config: ModelConfig) -> dict[str, int]:
    """Features of each norm of one layer, by its path within it."""
    outer = {
        "before": ("input_layernorm", "post_attention_layernorm"),
        "parallel": ("input_layernorm", "post_attention_layernorm"),
        "shared": ("input_layernorm",),
        "after": ("attention_output_norm", "mlp_output_norm"),
        "around": ("input_layernorm", "attention_output_norm", "post_attention_layernorm",
                   "mlp_output_norm"),
    }[config.norms]  # fmt: skip
    norms = dict.fromkeys(outer, config.hidden_size)
    if config.qk_norm:
        heads = (config.heads, config.kv_heads) if config.qk_norm == "width" else (1, 1)
        norms["self_attn.q_norm"] = heads[0] * config.head_dim
        norms["self_attn.k_norm"] = heads[1] * config.head_dim
    return norms


def norm_at(config: ModelConfig, path: str) -> str:
    """The checkpoints' name for the norm at `path`, such as `layers.0.input_layernorm`."""
    parent, _, name = path.rpartition(".")
    stored = config.names.get(name, name)
    return f"{parent}.{stored}" if parent else stored


def checkpoint_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of an unquantized checkpoint, by its name."""
    table = (config.vocab_size, config.hidden_size)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": table}
    norms = {"norm": config.hidden_size}
    for layer in range(config.layers):
        norms |= {f"layers.{layer}.{path}": size for path, size in layer_norms(config).items()}
    for path, features in norms.items():
        kinds = ("weight", "bias") if config.norm_bias and "self_attn" not in path else ("weight",)
        shapes |= {f"model.{norm_at(config, path)}.{kind}": (features,) for kind in kinds}
    for path, projection in projections(config):
        for part, rows in projection.parts.items():
            name = f"model.{sibling(path, part)}"
            shapes[f"{name}.weight"] = (rows, projection.columns)
            if projection.bias:
                shapes[f"{name}.bias"] = (rows,)
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
