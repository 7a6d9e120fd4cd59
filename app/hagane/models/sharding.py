"""Tensor parallelism: which part of a model each of several ranks has (Shoeybi et al., 2019,
arXiv:1909.08053).

Queries, keys, values, gate and up are divided by rows, as heads and inner features; what reads
them, by columns: each rank's product is a summand of the result. The embedding and the head are
divided by tokens of the vocabulary. Norms and routers are whole everywhere. So a rank's part is a
model of its own, with fewer heads and features:

    part = Shard(rank=1, ranks=2).config(config)
    part.heads == config.heads // 2

Needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hagane.models.config import ExpertsSpec, LayerSpec, ModelConfig
from hagane.models.spec import Piece, ProjectionSpec, parts_of
from hagane.system.errors import ConfigurationError

# First and last row of a range, the last one exclusive.
Range = tuple[int, int]


@dataclass(frozen=True)
class Shard:
    """The part of a model that `rank` of `ranks` has."""

    rank: int
    ranks: int

    def config(self, whole: ModelConfig) -> ModelConfig:
        """The config of the part. Raises ConfigurationError for sizes that cannot be divided."""
        self._check(whole)
        vocabulary = whole.vocab_size
        if self.divides_vocabulary(whole):
            vocabulary //= self.ranks
        return replace(
            whole,
            vocab_size=vocabulary,
            heads=whole.heads // self.ranks,
            kv_heads=max(1, whole.kv_heads // self.ranks),
            intermediate_size=whole.intermediate_size // self.ranks,
            layer_specs=tuple(self._layer(spec) for spec in whole.layer_specs),
        )

    def divides_vocabulary(self, whole: ModelConfig) -> bool:
        """Whether each rank has a part of the embedding and the head, or all of them have both."""
        return whole.vocab_size % self.ranks == 0

    def vocabulary(self, whole: ModelConfig) -> Range:
        """The tokens whose rows of the embedding and the head this rank has."""
        if not self.divides_vocabulary(whole):
            return 0, whole.vocab_size
        count = whole.vocab_size // self.ranks
        return self.rank * count, (self.rank + 1) * count

    def rows(self, projection: ProjectionSpec) -> tuple[Range, ...]:
        """The ranges of a projection's rows that this rank has, in order."""
        if projection.shard != "rows":
            return ((0, projection.rows),)
        found, first = [], 0
        for piece in projection.pieces:
            start, stop = self._own(piece)
            found.append((first + start, first + stop))
            first += piece.rows
        return tuple(found)

    def part_rows(self, path: str, projection: ProjectionSpec) -> dict[str, tuple[Range, ...]]:
        """As `rows`, of each part of the projection at `path`, by the part's path."""
        found, first = {}, 0
        ranges = self.rows(projection)
        for part, rows in parts_of(path, projection).items():
            last = first + rows
            own = (r for r in ranges if first < r[1] and r[0] < last)
            found[part] = tuple((max(a - first, 0), min(b, last) - first) for a, b in own)
            first = last
        return found

    def columns(self, projection: ProjectionSpec) -> Range:
        """The columns that this rank has."""
        if projection.shard != "columns":
            return 0, projection.columns
        count = projection.columns // self.ranks
        return self.rank * count, (self.rank + 1) * count

    def _own(self, piece: Piece) -> Range:
        """This rank's units; fewer than ranks are on several each, as key heads may be."""
        count = max(1, piece.units // self.ranks)
        first = self.rank * piece.units // self.ranks
        size = piece.rows // piece.units
        return first * size, (first + count) * size

    def _layer(self, spec: LayerSpec) -> LayerSpec:
        if spec.experts is None:
            return spec
        experts = replace(
            spec.experts,
            features=spec.experts.features // self.ranks,
            shared=spec.experts.shared // self.ranks,
        )
        return replace(spec, experts=experts)

    def _check(self, whole: ModelConfig) -> None:
        if not whole.declared:
            raise ConfigurationError(
                f"tensor_parallel does not go with {whole.architecture}, whose layers are "
                "transformers' own"
            )
        sizes = {"attention heads": whole.heads}
        if any(spec.experts is None for spec in whole.layer_specs):
            sizes["inner features"] = whole.intermediate_size
        for mixture in {spec.experts for spec in whole.layer_specs if spec.experts}:
            sizes |= _sizes(mixture)
        for name, size in sizes.items():
            if size % self.ranks:
                raise ConfigurationError(
                    f"tensor_parallel {self.ranks} does not divide the model's {size} {name}"
                )
        kv_heads = whole.kv_heads
        if kv_heads % self.ranks and self.ranks % kv_heads:
            raise ConfigurationError(
                f"tensor_parallel {self.ranks} neither divides the model's {kv_heads} key and "
                f"value heads nor is a multiple of them"
            )
        if whole.latent is not None or whole.sinks:
            raise ConfigurationError(
                f"tensor_parallel does not go with {whole.architecture} yet: its latent attention "
                "or the sinks of its heads are not divided"
            )
        if whole.qk_norm == "width":
            raise ConfigurationError(
                f"tensor_parallel does not go with {whole.architecture}, which normalises all "
                "heads of queries and keys together"
            )


def _sizes(mixture: ExpertsSpec) -> dict[str, int]:
    return {
        "inner features of an expert": mixture.features,
        "inner features of the shared expert": mixture.shared,
    }
