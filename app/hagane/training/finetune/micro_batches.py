"""The examples of each step. They depend only on seed and step, so resuming is exact."""

from __future__ import annotations

import numpy as np

from hagane.training.finetune.examples import Example
from hagane.training.finetune.spec import TrainingPlan
from hagane.training.jobs.estimates import MICRO_TOKENS


def batch(examples: list[Example], plan: TrainingPlan, seed: int, step: int) -> list[Example]:
    """The examples of `step`; every epoch is shuffled again, and batches cross its end."""
    total = len(examples)
    end = min((step + 1) * plan.batch_size, plan.epochs * total)
    places = [divmod(position, total) for position in range(step * plan.batch_size, end)]
    orders = {
        epoch: np.random.default_rng((seed, epoch)).permutation(total)
        for epoch in {epoch for epoch, _ in places}
    }
    return [examples[orders[epoch][place]] for epoch, place in places]


def micro_batches(examples: list[Example]) -> list[list[Example]]:
    """Group consecutive examples that go through the model together, without padding."""
    parts: list[list[Example]] = []
    room = 0
    for example in examples:
        if len(example) > room or not parts:
            parts.append([])
            room = MICRO_TOKENS
        parts[-1].append(example)
        room -= len(example)
    return parts
