"""Whether a pretrained model goes live, under a name. Needs no torch."""

from __future__ import annotations

import math
from typing import Literal

from hagane.training.report.listener import PretrainResult

Policy = Literal["always", "if_better", "manual"]


def mean(bits_per_byte: dict[str, float]) -> float:
    """A run's one figure: the mean over its corpora, each counting the same."""
    return sum(bits_per_byte.values()) / len(bits_per_byte)


def opens(policy: Policy, most: float | None, result: PretrainResult) -> bool:
    """Whether the result is served without being asked for.

    `if_better` wants held-out text to cost no more than `most` bits a byte, and less than it cost
    the model that the run went on from; of a new model without `most`, a number.
    """
    if policy != "if_better":
        return policy == "always"
    bits = mean(result.bits_per_byte)
    base = math.inf if result.base_bits_per_byte is None else mean(result.base_bits_per_byte)
    # Written so that a loss that is no number never passes.
    return bits < base and bits <= (math.inf if most is None else most)


def judgement(name: str, promoted: bool, most: float | None, result: PretrainResult) -> str:
    """What a job's log says of its result."""
    judged = [f"{mean(result.bits_per_byte):.4f} bits per byte of held-out text"]
    if result.base_bits_per_byte is not None:
        judged.append(f"{mean(result.base_bits_per_byte):.4f} before")
    if most is not None:
        judged.append(f"at most {most:g} asked for")
    reasons = ", ".join(judged)
    if promoted:
        return f"New model created: {name} ({reasons})"
    return f"Model written to {result.directory}, but not promoted ({reasons})"
