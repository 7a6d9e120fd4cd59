"""The projections that a layer declares: the one place that knows a layer's matrices.

Building, loading, saving, adapters and their banks, and estimates of cost iterate over these
declarations:

    for path, projection in projections(config):
        ...                         "layers.0.self_attn.qkv_proj", whose parts are q, k and v

The model fuses matrices that read the same input: fewer, larger products. Checkpoints and adapters
keep them apart. Needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from hagane.models.config import ExpertsSpec, LatentSpec, ModelConfig

ShardAxis = Literal["rows", "columns"]

_EXPERTS = "mlp.experts."
_ROUTER = re.compile(
    r"(?P<before>.*layers\.(?P<layer>\d+)\.)mlp\.(?P<name>gate|shared_gate|correction)"
)
_LLAMA = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "o_proj": ("o_proj",),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "down_proj": ("down_proj",),
}


@dataclass(frozen=True)
class Piece:
    """The `rows` of one of Llama's matrices, in the checkpoint's matrix at `part`.

    They are so many `units`, such as heads, which tensor parallelism does not take apart.
    """

    part: str
    rows: int
    units: int


@dataclass(frozen=True)
class ProjectionSpec:
    """A linear layer [rows, columns], of `pieces` one under the other.

    Checkpoints may store several pieces as one matrix. With tensor parallelism each rank has a part
    of the rows, or, where it has a part of the inputs, of the columns, or all of it: `shard`.
    Adapters change those that are `adaptable`.
    """

    columns: int
    pieces: tuple[Piece, ...]
    shard: ShardAxis | None
    bias: bool = False
    adaptable: bool = True

    @property
    def parts(self) -> dict[str, int]:
        """The rows of each matrix of a checkpoint, in their order, by its path within a layer."""
        rows: dict[str, int] = {}
        for piece in self.pieces:
            rows[piece.part] = rows.get(piece.part, 0) + piece.rows
        return rows

    @property
    def rows(self) -> int:
        return sum(piece.rows for piece in self.pieces)


def layer_projections(config: ModelConfig, layer: int) -> dict[str, ProjectionSpec]:
    """The projections of one layer, by their path within it; none of an undeclared family."""
    if not config.declared:
        return {}
    found = _attention(config)
    mixture = config.layer_specs[layer].experts
    if mixture is None:
        return found | _mlp(config, "mlp", _own_names(config), config.intermediate_size)
    if mixture.shared:
        found |= _mlp(config, "mlp.shared_expert", mixture.names.shared, mixture.shared)
    for number in range(mixture.count):
        found |= _expert(config, mixture, number)
    return found


def projection_at(config: ModelConfig, path: str) -> ProjectionSpec | None:
    """The projection at `path` below the decoder, or None where there is none."""
    layer, _, within = path.removeprefix("layers.").partition(".")
    if not path.startswith("layers."):
        return None
    mixture = config.layer_specs[int(layer)].experts
    if mixture is not None and within.startswith(_EXPERTS):
        # Alone: there may be ten thousand.
        number = int(within.removeprefix(_EXPERTS).partition(".")[0])
        return _expert(config, mixture, number).get(within)
    found = _attention(config)
    if mixture is None:
        found |= _mlp(config, "mlp", _own_names(config), config.intermediate_size)
    elif mixture.shared:
        found |= _mlp(config, "mlp.shared_expert", mixture.names.shared, mixture.shared)
    return found.get(within)


def _attention(config: ModelConfig) -> dict[str, ProjectionSpec]:
    hidden, stored = config.hidden_size, part_names(config)
    if config.latent is not None:
        return _latent_attention(config, config.latent)
    counts = {"q_proj": config.heads, "k_proj": config.kv_heads, "v_proj": config.kv_heads}
    qkv = tuple(
        Piece(f"self_attn.{stored[part]}", heads * config.head_dim, heads)
        for part, heads in counts.items()
    )
    output = (Piece(f"self_attn.{stored['o_proj']}", hidden, 1),)
    queries = config.heads * config.head_dim
    return {
        "self_attn.qkv_proj": ProjectionSpec(hidden, qkv, "rows", config.qkv_bias),
        "self_attn.o_proj": ProjectionSpec(queries, output, "columns", config.output_bias),
    }


def _latent_attention(config: ModelConfig, latent: LatentSpec) -> dict[str, ProjectionSpec]:
    hidden, heads, turned = config.hidden_size, config.heads, config.rope.rotated
    queries, narrow = heads * config.head_dim, latent.query_rank
    first = ("self_attn.q_a_proj", narrow) if narrow else ("self_attn.q_proj", queries)
    joint = (Piece(*first, 1), Piece("self_attn.kv_a_proj_with_mqa", latent.rank + turned, 1))
    found = {"self_attn.qkv_proj": ProjectionSpec(hidden, joint, None)}
    if narrow:
        wide = (Piece("self_attn.q_b_proj", queries, heads),)
        found["self_attn.q_b_proj"] = ProjectionSpec(narrow, wide, "rows")
    expanded = heads * (config.head_dim - turned + latent.values)
    keys = (Piece("self_attn.kv_b_proj", expanded, heads),)
    output = (Piece("self_attn.o_proj", hidden, 1),)
    return found | {
        "self_attn.kv_b_proj": ProjectionSpec(latent.rank, keys, "rows"),
        "self_attn.o_proj": ProjectionSpec(heads * latent.values, output, "columns"),
    }


def _mlp(
    config: ModelConfig,
    path: str,
    names: tuple[str, str, str],
    inner: int,
    expert: ExpertsSpec | None = None,
) -> dict[str, ProjectionSpec]:
    """The projections of the MLP at `path`, whose gate, up and down projection have these names."""
    gate, up, down = names
    gate_up = tuple(Piece(name, inner, inner) for name in ((gate, up) if config.gated else (up,)))
    hidden, adaptable = config.hidden_size, expert is None
    bias = config.mlp_bias if expert is None else expert.bias
    output = (Piece(down, hidden, 1),)
    return {
        f"{path}.gate_up_proj": ProjectionSpec(hidden, gate_up, "rows", bias, adaptable),
        f"{path}.down_proj": ProjectionSpec(inner, output, "columns", bias, adaptable),
    }


def _own_names(config: ModelConfig) -> tuple[str, str, str]:
    stored, mlp = part_names(config), config.names.get("mlp", "mlp")
    up = f"{mlp}.{stored['up_proj']}"
    gate = f"{mlp}.{stored['gate_proj']}" if "gate_proj" in stored else up
    return gate, up, f"{mlp}.{stored['down_proj']}"


def _expert(config: ModelConfig, mixture: ExpertsSpec, number: int) -> dict[str, ProjectionSpec]:
    gate, up, down = (name.format(number) for name in mixture.names.experts)
    path = f"{_EXPERTS}{number}"
    return _mlp(config, path, (gate, up, down), mixture.features, mixture)


def part_names(config: ModelConfig) -> dict[str, str]:
    """The names that checkpoints and adapters give to Llama's matrices."""
    found = {}
    for fused, parts in _LLAMA.items():
        for part in parts:
            name = fused if fused in config.fused else part
            found[part] = config.names.get(name, name)
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
    if config.qk_norm and config.qk_norm != "unit":
        heads = (config.heads, config.kv_heads) if config.qk_norm == "width" else (1, 1)
        norms["self_attn.q_norm"] = heads[0] * config.head_dim
        norms["self_attn.k_norm"] = heads[1] * config.head_dim
    if config.latent is not None:
        if config.latent.query_rank:
            norms["self_attn.q_a_layernorm"] = config.latent.query_rank
        norms["self_attn.kv_a_layernorm"] = config.latent.rank
    return norms


def stored_at(config: ModelConfig, path: str) -> str:
    """The checkpoints' name for the norm, or the part of a router, at `path`.

    Such as `layers.0.input_layernorm`, `layers.0.mlp.gate`, `layers.0.mlp.correction`.
    """
    router = _ROUTER.fullmatch(path)
    if router is not None:
        mixture = config.layer_specs[int(router["layer"])].experts
        if mixture is not None:
            names = mixture.names
            own = {"gate": names.router, "shared_gate": names.shared_gate}
            return router["before"] + own.get(router["name"], names.correction)
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
        shapes |= _router_shapes(config, layer)
    if config.position_embeddings:
        shapes["model.embed_positions.weight"] = (config.max_position_embeddings, table[1])
    for path, features in norms.items():
        if not config.norm_weights:
            continue
        kinds = ("weight", "bias") if config.norm_bias and "self_attn" not in path else ("weight",)
        shapes |= {f"model.{stored_at(config, path)}.{kind}": (features,) for kind in kinds}
    for path, projection in projections(config):
        for part, rows in parts_of(path, projection).items():
            shapes[f"model.{part}.weight"] = (rows, projection.columns)
            if projection.bias:
                shapes[f"model.{part}.bias"] = (rows,)
        if config.sinks and path.endswith(".self_attn.qkv_proj"):
            sinks = path.replace("qkv_proj", "sinks")
            shapes[f"model.{sinks}"] = (config.heads,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = table
    if config.head_bias:
        shapes["lm_head.bias"] = (config.vocab_size,)
    return shapes


def _router_shapes(config: ModelConfig, layer: int) -> dict[str, tuple[int, ...]]:
    mixture = config.layer_specs[layer].experts
    if mixture is None:
        return {}
    names, prefix = mixture.names, f"model.layers.{layer}"
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}.{names.router}.weight": (mixture.count, config.hidden_size)
    }
    if mixture.router_bias:
        shapes[f"{prefix}.{names.router}.bias"] = (mixture.count,)
    if mixture.shared_gate:
        shapes[f"{prefix}.{names.shared_gate}.weight"] = (1, config.hidden_size)
    if mixture.corrected:
        shape = (*(1,) * (names.correction_dims - 1), mixture.count)
        return shapes | {f"{prefix}.{names.correction}": shape}
    return shapes


def projections(config: ModelConfig) -> Iterator[tuple[str, ProjectionSpec]]:
    """Every projection by its path below the decoder, such as `layers.0.mlp.down_proj`."""
    for layer in range(config.layers):
        for path, projection in layer_projections(config, layer).items():
            yield f"layers.{layer}.{path}", projection


def linear_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(rows, columns) of every adaptable matrix, by its path, as `layers.0.self_attn.q_proj`."""
    return {
        part: (rows, projection.columns)
        for path, projection in projections(config)
        if projection.adaptable
        for part, rows in parts_of(path, projection).items()
    }


def parts_of(path: str, projection: ProjectionSpec) -> dict[str, int]:
    """Rows of each part of the projection at `path`, by the part's path below the decoder."""
    layer = path.removeprefix("layers.").partition(".")[0]
    return {f"layers.{layer}.{part}": rows for part, rows in projection.parts.items()}


def parts_at(config: ModelConfig, path: str) -> dict[str, int] | None:
    """Rows of each part of the projection at `path`, by path; None where there is none."""
    projection = projection_at(config, path)
    return None if projection is None else parts_of(path, projection)
