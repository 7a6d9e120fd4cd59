"""Draws tokens from the adjusted logits of some sequences."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from functools import cached_property
from typing import Self

import numpy as np
import torch
from torch import Tensor

from hagane.engine.schedule.sequence import Sequence
from hagane.kernels.backend import Operations
from hagane.kernels.sampling import SamplingTensors
from hagane.kernels.transfer import send
from hagane.pool.messages import SamplingParams

# Anything smaller is as good as greedy, and overflows logits where they are divided by it.
_LEAST_TEMPERATURE = 1e-5


class Draw:
    """Float32 logits [rows, vocab] of `sequences`, and the number that decides in each row.

    `likeliest` int64 [rows] are their argmax, if they are known.
    """

    def __init__(
        self,
        operations: Operations,
        logits: Tensor,
        sequences: Rows[Sequence],
        uniforms: Rows[float],
        likeliest: Tensor | None = None,
    ) -> None:
        self.operations, self.logits = operations, logits
        self.sequences, self.uniforms = sequences, uniforms
        self._known = likeliest

    @cached_property
    def likeliest(self) -> Tensor:
        """int64 [rows]: the argmax of each."""
        return self.operations.argmax(self.logits)[0] if self._known is None else self._known

    @cached_property
    def constrained(self) -> list[int]:
        """The rows that follow a grammar."""
        return [i for i, sequence in enumerate(self.sequences) if sequence.grammar is not None]

    def of(self, rows: Rows[int], logits: Tensor | None = None) -> Draw:
        """Some `rows` alone, in ascending order; with other `logits` if they are given."""
        if logits is None:
            if len(rows) == len(self.sequences):
                return self
            logits = self.logits[on_device(rows, self.logits.device)]
        sequences = [self.sequences[row] for row in rows]
        return Draw(self.operations, logits, sequences, [self.uniforms[row] for row in rows])

    def tokens(self, count: int) -> Tensor:
        """int64 [rows, count]: independent samples, or always the likeliest token of a row."""
        sampled = [i for i, s in enumerate(self.sequences) if s.sampling.temperature > 0]
        if sampled and len(sampled) == len(self.sequences):
            return self.samples(sampled, count)
        tokens = self.likeliest[:, None].repeat(1, count)
        if sampled:
            tokens[on_device(sampled, self.logits.device)] = self.samples(sampled, count)
        return tokens

    def samples(self, rows: Rows[int], count: int) -> Tensor:
        """int64 [rows, count]: independent samples of some rows, whose temperatures are above 0."""
        params = [self.sequences[row].sampling for row in rows]
        tensors = tensors_of(params, [self.uniforms[row] for row in rows])
        logits = self.logits
        if len(rows) < len(self.sequences):
            logits = logits[on_device(rows, logits.device)]
        if count == 1:
            return self.operations.sample(logits, tensors)[:, None]
        return self.operations.samples(logits, tensors, count)


class TakenOut:
    """A context in which tokens can be taken out of logits on the host; they come back at its end.

    The rows of a step are megabytes: to copy some takes longer than to sample them.
    """

    def __init__(self, logits: Tensor) -> None:
        self._logits = logits.numpy()
        self._before: list[tuple[int, Rows[int], np.ndarray]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # The last ones first: a token may have been taken out twice.
        for row, tokens, values in reversed(self._before):
            self._logits[row, tokens] = values

    def take(self, row: int, tokens: Rows[int]) -> None:
        """Have none of `tokens` be drawn in a row."""
        self._before.append((row, tokens, self._logits[row, tokens]))
        self._logits[row, tokens] = -np.inf


def on_device(ids: Rows[int], device: torch.device) -> Tensor:
    """int64 [ids], sent without waiting."""
    return send([torch.tensor(ids, dtype=torch.int64)], device)[0]


def tensors_of(params: Rows[SamplingParams], uniforms: Rows[float]) -> SamplingTensors:
    """Parameters of sampled rows as kernels want them."""

    def column(values: Rows[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)

    return SamplingTensors(
        temperature=column([max(p.temperature, _LEAST_TEMPERATURE) for p in params]),
        top_p=column([p.top_p for p in params]),
        min_p=column([p.min_p for p in params]),
        top_k=torch.tensor([p.top_k for p in params]),
        uniform=column(uniforms),
    )
