"""The examples of each step. They depend only on seed and step, so resuming is exact."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import TypeVar

import numpy as np

from hagane.training.finetune.spec import TrainingPlan
from hagane.training.jobs.estimates import MICRO_TOKENS

Item = TypeVar("Item")
Measured = TypeVar("Measured", bound=Sized)


def batch(items: Sequence[Item], plan: TrainingPlan, seed: int, step: int) -> list[Item]:
    """The items of `step`; every epoch is shuffled again, and batches cross its end."""
    total = len(items)
    end = min((step + 1) * plan.batch_size, plan.epochs * total)
    places = [divmod(position, total) for position in range(step * plan.batch_size, end)]
    orders = {
        epoch: np.random.default_rng((seed, epoch)).permutation(total)
        for epoch in {epoch for epoch, _ in places}
    }
    return [items[orders[epoch][place]] for epoch, place in places]


def micro_batches(items: Sequence[Measured]) -> list[list[Measured]]:
    """Group consecutive items that go through the model together, without padding.

    The length of an item is its tokens.
    """
    parts: list[list[Measured]] = []
    room = 0
    for item in items:
        if len(item) > room or not parts:
            parts.append([])
            room = MICRO_TOKENS
        parts[-1].append(item)
        room -= len(item)
    return parts
