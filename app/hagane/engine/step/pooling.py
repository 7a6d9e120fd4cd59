"""Embeddings of prompts, made of hidden states as their chunks pass through the model."""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from hagane.engine.schedule.plan import Chunk
from hagane.engine.schedule.sequence import Sequence


class PendingEmbeddings:
    """Those that are being made, by request."""

    def __init__(self) -> None:
        self._made: dict[str, Tensor] = {}

    def collect(self, pooled: Rows[tuple[Chunk, int]], hidden: Tensor) -> None:
        """Take up the hidden states [rows, features] of a step.

        Each chunk comes with the first of its rows. A prompt that is computed again, after a
        preemption, begins anew.
        """
        for chunk, start in pooled:
            name, pooling = chunk.sequence.request_id, chunk.sequence.pooling
            if pooling == "last" or (pooling == "first" and chunk.start == 0):
                self._made[name] = hidden[start].double()
            elif pooling == "mean":
                # In float64 the order of the sums, which chunks decide, does not show.
                rows = hidden[start : start + chunk.length].double().sum(0)
                before = self._made.get(name) if chunk.start else None
                self._made[name] = rows if before is None else before + rows

    def take(self, sequence: Sequence) -> bytes | None:
        """The embedding of a sequence whose prompt is done: float32, little-endian."""
        made = self._made.pop(sequence.request_id, None)
        if made is None:
            return None
        return as_bytes(made / sequence.prompt_length if sequence.pooling == "mean" else made)

    def forget(self, request_id: str) -> None:
        """Drop that of a request which is gone."""
        self._made.pop(request_id, None)


def as_bytes(values: Tensor) -> bytes:
    """A vector as float32, little-endian."""
    raw: bytes = values.to("cpu", torch.float32).numpy().astype("<f4").tobytes()
    return raw
