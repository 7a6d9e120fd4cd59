"""Experts whose gate and up projections are one tensor: gpt-oss's alternate, Llama 4's are halves.

As floats these are [experts, hidden, 2 * features] and [experts, features, hidden]; in MXFP4
(gpt-oss) bytes, `..._blocks` [experts, outputs, groups, 16] and `..._scales` without the last.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hagane.models.config import JointKind
from hagane.system.errors import ModelError
from hagane.weights.sources.mxfp4 import GROUP, Mxfp4Matrix, has_form
from hagane.weights.sources.source import Rows, WeightSource

_EXPERT = re.compile(r"(?P<owner>.+\.experts)\.(?P<number>\d{1,6})\.(?P<part>gate|up|down)_proj\.")


@dataclass(frozen=True)
class _Place:
    """Where an expert's matrix lies: in the tensor `stack`, of whose outputs it has one in `step`.

    They alternate, beginning with the one at `first`, or are one of so many equal parts.
    """

    stack: str
    number: int
    first: int
    step: int
    kind: JointKind

    def take(self, outputs: Tensor) -> Tensor:
        if self.kind == "alternating":
            return outputs[self.first :: self.step]
        return outputs.chunk(self.step)[self.first]


class JointExperts:
    """A source in which experts have the names of Llama's MLP, with a number.

    source = JointExperts(SafetensorsCheckpoint(path), path, "alternating")
    rows = source.read("model.layers.0.mlp.experts.3.gate_proj.weight", (2880, 2880))
    """

    def __init__(self, checkpoint: WeightSource, path: Path, kind: JointKind) -> None:
        self.checkpoint, self.path, self.kind = checkpoint, path, kind
        # By the name of a layer's experts, whether kernels have a form for the codes of all.
        self._kept: dict[str, bool] = {}

    def shape(self, name: str) -> tuple[int, ...] | None:
        place = _place(name, self.kind)
        if place is None:
            return self.checkpoint.shape(name)
        bias = self.checkpoint.shape(f"{place.stack}_bias")
        blocks = self.checkpoint.shape(f"{place.stack}_blocks")
        floats = self.checkpoint.shape(place.stack)
        stack = bias if name.endswith(".bias") else blocks or floats
        if stack is None or len(stack) < 2 or place.number >= stack[0]:
            return None
        if name.endswith(".bias"):
            return (stack[1] // place.step,)
        if blocks is None:
            return (stack[-1] // place.step, stack[1])
        return (stack[1] // place.step, stack[2] * GROUP) if len(stack) == 4 else None

    def others(self, names: Collection[str]) -> list[str]:
        known = set(names)
        for name in names:
            if place := _place(name, self.kind):
                known |= {place.stack + end for end in ("", "_bias", "_blocks", "_scales")}
        return self.checkpoint.others(known)

    def read(self, name: str, shape: tuple[int, ...]) -> Rows:
        """The tensor `name`. Raises ModelError if it is missing or not of `shape`."""
        place = _place(name, self.kind)
        if place is None:
            return self.checkpoint.read(name, shape)
        stored = self.shape(name)
        if stored != shape:
            problem = "is missing" if stored is None else f"has shape {list(stored)}"
            raise ModelError(
                f"{self.path}: tensor {name} {problem}, the config asks for {list(shape)}"
            )
        if name.endswith(".bias"):
            return place.take(self._expert(f"{place.stack}_bias", place.number)).contiguous()
        if self.checkpoint.shape(f"{place.stack}_blocks") is None:
            return place.take(self._expert(place.stack, place.number).t()).contiguous()
        blocks, scales = (
            place.take(self._expert(place.stack + end, place.number))
            for end in ("_blocks", "_scales")
        )
        known = blocks.dtype == scales.dtype == torch.uint8 and blocks.shape[:2] == scales.shape
        if not known or blocks.shape[2] * 2 != GROUP:
            raise ModelError(f"{self.path}: {place.stack}_blocks and _scales are not MXFP4")
        return Mxfp4Matrix(blocks, scales, self._keeps(place.stack.rpartition(".")[0]))

    def _keeps(self, owner: str) -> bool:
        """Experts of a layer are multiplied together: kernels want one format of them."""
        if owner not in self._kept:
            self._kept[owner] = all(
                has_form(*(self._whole(f"{owner}.{stack}{end}") for end in ("_blocks", "_scales")))
                for stack in ("gate_up_proj", "down_proj")
                if self.checkpoint.shape(f"{owner}.{stack}_blocks") is not None
            )
        return self._kept[owner]

    def _expert(self, stack: str, number: int) -> Tensor:
        whole = self._whole(stack)
        if number >= len(whole):
            raise ModelError(f"{self.path}: {stack} has no expert {number}")
        return whole[number]

    def _whole(self, stack: str) -> Tensor:
        shape = self.checkpoint.shape(stack)
        if shape is None:
            raise ModelError(f"{self.path}: tensor {stack} is missing")
        whole = self.checkpoint.read(stack, shape)
        return whole if isinstance(whole, Tensor) else torch.cat(list(whole.split(len(whole))))


def _place(name: str, kind: JointKind) -> _Place | None:
    match = _EXPERT.match(name)
    if match is None:
        return None
    first, step = {"gate": (0, 2), "up": (1, 2), "down": (0, 1)}[match["part"]]
    stack = f"{match['owner']}.{'down_proj' if step == 1 else 'gate_up_proj'}"
    return _Place(stack, int(match["number"]), first, step, kind)
