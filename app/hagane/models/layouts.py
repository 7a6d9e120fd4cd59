"""Checkpoints whose tensors have other names than Llama's, or lie in them in another way.

    layout = Layout(layer="transformer.h", names={"input_layernorm": "ln_1"})
    layout.place("model.layers.3.input_layernorm.weight")   Place("transformer.h.3.ln_1.weight")

Families declare them; `hagane.weights` reads and writes by them. Needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

_IN_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.(\w+)")
_JOINT = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")

# Of a matrix with queries, keys and values: whose heads lie together.
Grouping = Literal["all", "kv_heads", "heads"]


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: in the one called `name`.

    `part` counts queries, keys and values of a joint matrix; None: it is all of the tensor.
    `transposed` matrices are [columns, rows]. `unit`: rows are divided by their length.
    """

    name: str
    part: int | None = None
    transposed: bool = False
    unit: bool = False


@dataclass(frozen=True)
class Layout:
    """The tensors of a checkpoint by the names that Llama's would have.

    `outer` names modules outside of layers, `layer` what a layer's names begin with before its
    number, and `names` modules within one. `joint` is the matrix with queries, keys and values, in
    which those of each of `groups` lie one after the other: of all heads, of each head for keys, or
    of each head. Names that end with one of `transposed` are [columns, rows]. `unit_head`: rows of
    the head are divided by their length. Tensors whose names begin with one of `ignored` belong to
    other parts than the decoder. Some files have `others` in the place of what names begin with.
    `written`: models are saved in this layout, not in Llama's.
    """

    outer: Mapping[str, str] = field(default_factory=dict)
    layer: str = "model.layers"
    names: Mapping[str, str] = field(default_factory=dict)
    joint: str = ""
    groups: Grouping = "all"
    transposed: tuple[str, ...] = ()
    unit_head: bool = False
    ignored: tuple[str, ...] = ()
    others: tuple[tuple[str, str], ...] = ()
    written: bool = False

    def place(self, name: str) -> Place:
        """Where the tensor that Llama's checkpoints call `name` lies."""
        match = _IN_LAYER.fullmatch(name)
        if match is None:
            stem, _, kind = name.rpartition(".")
            return Place(f"{self.outer.get(stem, stem)}.{kind}", unit=self._is_unit(stem))
        number, module, kind = match.groups()
        joint = bool(self.joint) and module in _JOINT
        stored = self.joint if joint else self._within(module)
        return Place(
            f"{self.layer}.{number}.{stored}.{kind}",
            _JOINT.index(module) if joint else None,
            kind == "weight" and stored.endswith(self.transposed),
        )

    def _is_unit(self, stem: str) -> bool:
        return self.unit_head and stem == "lm_head"

    def _within(self, module: str) -> str:
        """The stored name of a module within a layer, or of what it is below."""
        for ours, stored in self.names.items():
            if module == ours or module.startswith(f"{ours}."):
                return stored + module.removeprefix(ours)
        return module
