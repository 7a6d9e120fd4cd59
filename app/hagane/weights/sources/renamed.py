"""Weights under Llama's names, of checkpoints in another layout (`hagane.models.layouts`)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from hagane.models.config import ModelConfig
from hagane.models.layouts import Layout, Place
from hagane.system.errors import ModelError
from hagane.weights.sources.source import Rows, WeightSource

_ROWS = 4096


@dataclass(frozen=True)
class _Heads:
    """Queries, keys and values of a joint matrix [rows, ...], a view of it."""

    config: ModelConfig
    layout: Layout

    def view(self, joint: Tensor, part: int) -> Tensor:
        """[groups, heads of a part, head_dim, ...]."""
        config = self.config
        groups = {"all": 1, "kv_heads": config.kv_heads, "heads": config.heads}[self.layout.groups]
        counts = [config.heads // groups, config.kv_heads // groups, config.kv_heads // groups]
        rows = joint.view(groups, sum(counts), config.head_dim, *joint.shape[1:])
        parts: tuple[Tensor, ...] = rows.split(counts, dim=1)
        return parts[part]

    @property
    def rows(self) -> int:
        return (self.config.heads + 2 * self.config.kv_heads) * self.config.head_dim


def rows_of_part(config: ModelConfig, joint: Tensor, part: int) -> Tensor:
    """Queries (0), keys or values of a joint matrix or vector [rows, ...], as Llama has them."""
    if config.layout is None:
        raise ValueError("the configuration declares no layout")
    return _Heads(config, config.layout).view(joint, part).flatten(0, 2)


class RenamedSource:
    """A source in which a checkpoint's tensors have the names and shapes of Llama's.

    source = RenamedSource(open_source(path), config)  # whose layout says where they lie
    rows = source.read("model.layers.0.self_attn.q_proj.weight", (4096, 4096))
    """

    def __init__(self, source: WeightSource, config: ModelConfig) -> None:
        if config.layout is None:
            raise ValueError("the configuration declares no layout")
        self.source, self.layout = source, config.layout
        self._heads = _Heads(config, config.layout)
        first = config.layout.place("model.embed_tokens.weight").name
        self._swaps = () if source.shape(first) else config.layout.others

    def _place(self, name: str) -> Place:
        place = self.layout.place(name)
        for beginning, other in self._swaps:
            if place.name.startswith(beginning):
                return replace(place, name=other + place.name.removeprefix(beginning))
        return place

    def shape(self, name: str) -> tuple[int, ...] | None:
        place = self._place(name)
        shape = self.source.shape(place.name)
        if shape is None:
            return None
        if place.transposed:
            shape = shape[::-1]
        if place.part is None:
            return shape
        if shape[0] != self._heads.rows:
            return shape  # which is compared, and said
        config = self._heads.config
        heads = config.kv_heads if place.part else config.heads
        return (heads * config.head_dim, *shape[1:])

    def others(self, names: Collection[str]) -> list[str]:
        known = {self._place(name).name for name in names}
        return [n for n in self.source.others(known) if not n.startswith(self.layout.ignored)]

    def read(self, name: str, shape: tuple[int, ...]) -> Rows:
        """The tensor `name`. Raises ModelError if it is missing or not of `shape`."""
        place, stored = self._place(name), self.shape(name)
        if stored != shape:
            problem = "is missing" if stored is None else f"gives {name} the shape {list(stored)}"
            raise ModelError(f"tensor {place.name} {problem}, the config asks for {list(shape)}")
        whole = self.source.read(place.name, self.source.shape(place.name) or ())
        if place == Place(place.name):
            return whole
        floats = whole if isinstance(whole, Tensor) else torch.cat(list(whole.split(_ROWS)))
        if place.transposed:
            floats = floats.t().contiguous()
        if place.part is not None:
            floats = rows_of_part(self._heads.config, floats, place.part)
        return F.normalize(floats.float()).to(floats.dtype) if place.unit else floats


def in_layout(config: ModelConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` under Llama's names, as checkpoints of the model's layout have them."""
    layout = config.layout
    if layout is None or not layout.written:
        return tensors
    heads, stored = _Heads(config, layout), dict[str, Tensor]()
    for name, tensor in tensors.items():
        place = layout.place(name)
        if place.part is None:
            stored[place.name] = tensor
            continue
        if place.name not in stored:
            stored[place.name] = tensor.new_empty(heads.rows, *tensor.shape[1:])
        view = heads.view(stored[place.name], place.part)
        view.copy_(tensor.view(view.shape))
    return {
        name: tensor.t().contiguous() if _transposed(layout, name) else tensor
        for name, tensor in stored.items()
    }


def _transposed(layout: Layout, name: str) -> bool:
    stem, _, kind = name.rpartition(".")
    return kind == "weight" and stem.endswith(layout.transposed)
