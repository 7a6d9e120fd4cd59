"""Decides whether a candidate takes over: from counts and judgements, by a policy in data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from hagane.evaluation.sequential import Interval, confidence_sequence

Verdict = Literal["promote", "hold", "roll_back"]
_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class CanaryPolicy(BaseModel):
    """When a candidate replaces the target, and when it is withdrawn.

    Both arms need `min_requests`. The candidate's part of failed requests may be `max_error_rate`,
    its seconds per token `max_latency_ratio` times the target's. With `min_win_rate`, the
    probability that its answers are judged better must be above that, with `confidence`; None
    decides without judgements. An undecided comparison ends after `max_requests` of the candidate:
    the split stays as it is. `webhook` is called with the decision.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_requests: int = Field(100, ge=1, le=1 << 31, strict=True)
    max_error_rate: _Number = Field(0.02, ge=0, le=1)
    max_latency_ratio: _Number | None = Field(None, gt=0)
    min_win_rate: _Number | None = Field(None, gt=0, lt=1)
    confidence: _Number = Field(0.95, gt=0.5, lt=1)
    max_requests: int | None = Field(None, ge=1, le=1 << 31, strict=True)
    webhook: str | None = Field(None, max_length=2048, pattern=r"^https?://")


@dataclass
class ArmCounts:
    """Counts of one side of an alias: `seconds` and `tokens` of the requests that succeeded."""

    requests: int = 0
    errors: int = 0
    seconds: float = 0.0
    tokens: int = 0

    def add(self, other: ArmCounts) -> None:
        """Add what came since."""
        self.requests += other.requests
        self.errors += other.errors
        self.seconds += other.seconds
        self.tokens += other.tokens

    @property
    def error_rate(self) -> float:
        """Part of the requests that failed."""
        return self.errors / self.requests if self.requests else 0.0


@dataclass(frozen=True)
class Comparison:
    """All that a decision rests on; `wins` and `losses` are the candidate's."""

    target: ArmCounts = field(default_factory=ArmCounts)
    candidate: ArmCounts = field(default_factory=ArmCounts)
    wins: int = 0
    losses: int = 0

    @property
    def latency_ratio(self) -> float | None:
        """Seconds per token of the candidate over those of the target."""
        theirs, ours = self.target, self.candidate
        if not (theirs.seconds and theirs.tokens and ours.tokens):
            return None
        return (ours.seconds / ours.tokens) / (theirs.seconds / theirs.tokens)

    def win_rate(self, confidence: float) -> Interval:
        """The probability of a win, with bounds that hold at any time."""
        return confidence_sequence(self.wins, self.losses, confidence)


def decide(policy: CanaryPolicy, seen: Comparison) -> tuple[Verdict, str]:
    """The verdict as of now, and its reason. "hold" waits for more."""
    if (fault := _fault(policy, seen)) is not None:
        return "roll_back", fault
    least = min(seen.target.requests, seen.candidate.requests)
    if least < policy.min_requests:
        return "hold", f"{least} of {policy.min_requests} requests to each arm"
    if policy.min_win_rate is None:
        return "promote", f"{least} requests to each arm without a fault"
    rate = seen.win_rate(policy.confidence)
    judged = (
        f"{seen.wins} wins and {seen.losses} losses: a win rate of {rate.share:.3f} "
        f"({rate.low:.3f} to {rate.high:.3f}), {policy.min_win_rate:g} required"
    )
    return ("promote" if rate.low > policy.min_win_rate else "hold"), judged


def _fault(policy: CanaryPolicy, seen: Comparison) -> str | None:
    """The certain reason against the candidate, however early; None if there is none."""
    ours, enough = seen.candidate, seen.candidate.requests >= policy.min_requests
    errors = confidence_sequence(ours.errors, ours.requests - ours.errors, policy.confidence)
    if errors.low > policy.max_error_rate or (enough and ours.error_rate > policy.max_error_rate):
        return (
            f"{ours.errors} of {ours.requests} requests failed, more than the part of "
            f"{policy.max_error_rate:g}"
        )
    ratio, most = seen.latency_ratio, policy.max_latency_ratio
    fair = enough and seen.target.requests >= policy.min_requests
    if fair and ratio is not None and most is not None and ratio > most:
        return f"{ratio:.2f} times the target's seconds per token, more than {most:g}"
    if policy.min_win_rate is None:
        return None
    rate = seen.win_rate(policy.confidence)
    if rate.high < policy.min_win_rate:
        return (
            f"{seen.wins} wins and {seen.losses} losses: a win rate of at most {rate.high:.3f}, "
            f"{policy.min_win_rate:g} required"
        )
    return None
