"""Experts of gpt-oss: all of a layer in one tensor, in which gate and up projection alternate.

As floats these are [experts, hidden, 2 * features] and [experts, features, hidden]; in MXFP4
`..._blocks` [experts, outputs, groups, 16] and `..._scales` [experts, outputs, groups], bytes.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from hagane.system.errors import ModelError
from hagane.weights.sources.mxfp4 import GROUP, Mxfp4Matrix, has_form
from hagane.weights.sources.safetensors import SafetensorsCheckpoint
from hagane.weights.sources.source import Rows

_EXPERT = re.compile(r"(?P<owner>.+\.experts)\.(?P<number>\d{1,6})\.(?P<part>gate|up|down)_proj\.")


@dataclass(frozen=True)
class _Place:
    """Where an expert's matrix lies: in the tensor `stack`, every other output from `first` on."""

    stack: str
    number: int
    first: int
    step: int

    def take(self, outputs: Tensor) -> Tensor:
        return outputs[self.first :: self.step]


class AlternatingExperts:
    """A source in which experts have the names of Llama's MLP, with a number.

    source = AlternatingExperts(SafetensorsCheckpoint(path))
    rows = source.read("model.layers.0.mlp.experts.3.gate_proj.weight", (2880, 2880))
    """

    def __init__(self, checkpoint: SafetensorsCheckpoint) -> None:
        self.checkpoint = checkpoint
        # By the name of a layer's experts, whether kernels have a form for the codes of all.
        self._kept: dict[str, bool] = {}

    def shape(self, name: str) -> tuple[int, ...] | None:
        place = _place(name)
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
            if place := _place(name):
                known |= {place.stack + end for end in ("", "_bias", "_blocks", "_scales")}
        return self.checkpoint.others(known)

    def read(self, name: str, shape: tuple[int, ...]) -> Rows:
        """The tensor `name`. Raises ModelError if it is missing or not of `shape`."""
        place = _place(name)
        if place is None:
            return self.checkpoint.read(name, shape)
        stored = self.shape(name)
        if stored != shape:
            problem = "is missing" if stored is None else f"has shape {list(stored)}"
            raise ModelError(
                f"{self.checkpoint.directory}: tensor {name} {problem}, the config asks for "
                f"{list(shape)}"
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
            raise ModelError(
                f"{self.checkpoint.directory}: {place.stack}_blocks and _scales are not MXFP4"
            )
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
            raise ModelError(f"{self.checkpoint.directory}: {stack} has no expert {number}")
        return whole[number]

    def _whole(self, stack: str) -> Tensor:
        shape = self.checkpoint.shape(stack)
        if shape is None:
            raise ModelError(f"{self.checkpoint.directory}: tensor {stack} is missing")
        return self.checkpoint.read(stack, shape)


def _place(name: str) -> _Place | None:
    match = _EXPERT.match(name)
    if match is None:
        return None
    first, step = {"gate": (0, 2), "up": (1, 2), "down": (0, 1)}[match["part"]]
    stack = f"{match['owner']}.{'down_proj' if step == 1 else 'gate_up_proj'}"
    return _Place(stack, int(match["number"]), first, step)
