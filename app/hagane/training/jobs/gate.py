"""Decide whether a pretrained model is promoted. Needs no torch."""

from __future__ import annotations

import math
from typing import Literal

from hagane.training.report.listener import PretrainResult

Policy = Literal["always", "if_better", "manual"]


def mean(bits_per_byte: dict[str, float]) -> float:
    """Mean over the corpora, all with the same weight."""
    return sum(bits_per_byte.values()) / len(bits_per_byte)


def opens(policy: Policy, most: float | None, result: PretrainResult) -> bool:
    """Whether `policy` promotes the result.

    `if_better` requires at most `most` bits per byte of held-out text, and fewer than the model
    that the run started from; of a new model without `most` it only requires a finite loss.
    """
    if policy != "if_better":
        return policy == "always"
    bits = mean(result.bits_per_byte)
    base = math.inf if result.base_bits_per_byte is None else mean(result.base_bits_per_byte)
    # Comparisons with NaN are false, so a NaN loss never passes.
    return bits < base and bits <= (math.inf if most is None else most)


def judgement(name: str, promoted: bool, most: float | None, result: PretrainResult) -> str:
    """The message of the job's event about its result."""
    judged = [f"{mean(result.bits_per_byte):.4f} bits per byte of held-out text"]
    if result.base_bits_per_byte is not None:
        judged.append(f"{mean(result.base_bits_per_byte):.4f} before")
    if most is not None:
        judged.append(f"at most {most:g} required")
    reasons = ", ".join(judged)
    if promoted:
        return f"New model created: {name} ({reasons})"
    return f"Model written to {result.directory}, but not promoted ({reasons})"
