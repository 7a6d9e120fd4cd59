"""Two ranks that compute the same models: this process and another one."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from hagane.kernels import cpu
from hagane.kernels.collective import Group
from hagane.models.attention import PackedCausal
from hagane.models.config import Quantization
from hagane.models.parallel import join
from hagane.models.sharding import Shard
from hagane.weights.load import load_model
from hagane.weights.sources.config import load_config
from torch import Tensor

RANKS = 2
TOKENS = [5, 80, 3, 77, 41, 9, 150, 22, 6, 119, 64]


@dataclass(frozen=True)
class Case:
    """A model, and how its weights are stored."""

    directory: Path
    quantization: Quantization | None = None
    dtype: torch.dtype = torch.float32


@torch.inference_mode()
def logits(case: Case, group: Group | None = None) -> Tensor:
    """Float32 [tokens, vocab] of the native kernels; of a group, at its first rank."""
    model, _ = load_model(
        case.directory,
        device="cpu",
        dtype=case.dtype,
        quantization=case.quantization,
        operations=cpu,
        shard=None if group is None else Shard(group.rank, group.ranks),
    )
    if group is not None:
        join(model.eval(), group, load_config(case.directory).vocab_size)
    hidden = model(torch.tensor(TOKENS), PackedCausal(1, len(TOKENS)))
    return model.logits(hidden).clone()


@contextlib.contextmanager
def second_rank(cases: Sequence[Case], meeting: Path) -> Iterator[Group]:
    """The group of this process and another one, which computes `cases` in their order."""
    context = multiprocessing.get_context("spawn")
    other = context.Process(target=_follow, args=(list(cases), meeting))
    other.start()
    group = Group(0, RANKS, meeting, torch.device("cpu"), timeout=60.0)
    try:
        yield group
    finally:
        other.join(30.0)
        other.kill()
        group.leave()


def _follow(cases: list[Case], meeting: Path) -> None:
    cpu.start(1)
    torch.set_num_threads(1)
    group = Group(1, RANKS, meeting, torch.device("cpu"), timeout=60.0)
    for case in cases:
        logits(case, group)
