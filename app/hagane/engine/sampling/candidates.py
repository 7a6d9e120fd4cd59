"""Samples under a grammar with top_k, top_p or min_p, without the grammar's mask.

These cut the masked distribution, most often down to its first few tokens. So the grammar is asked
about the likeliest tokens of the whole distribution, one after another, until it is certain which
one is sampled, whatever the grammar says about all the others.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable

from hagane.pool.messages import SamplingParams


class _Kept:
    """The allowed tokens known so far that the filters may keep, heaviest first."""

    def __init__(self, params: SamplingParams, point: float) -> None:
        self._params, self._point = params, point
        self._tokens: list[int] = []
        # The weight of the first, of the first two, and so on.
        self._masses: list[float] = []
        self._closed = False

    def close_before(self, weight: float) -> None:
        """Keep no more if top_k or min_p cuts all tokens of this weight and less."""
        full = 0 < self._params.top_k <= len(self._tokens)
        light = bool(self._masses) and weight < self._params.min_p * self._masses[0]
        self._closed = self._closed or full or light

    def add(self, token: int, weight: float) -> None:
        """The next allowed token."""
        if not self._closed:
            self._tokens.append(token)
            self._masses.append(weight + (self._masses[-1] if self._masses else 0.0))

    def sampled(self, least: float, most: float) -> int | None:
        """The token that is sampled if all allowed ones weigh from `least` to `most`; or unsure."""
        masses, top_p = self._masses, self._params.top_p
        if not masses or not (self._closed or masses[-1] >= top_p * most):
            return None
        # The token's place rises with the number of tokens that top_p keeps.
        first, last = (self._place(bisect_left(masses, top_p * mass)) for mass in (least, most))
        return self._tokens[first] if first == last else None

    def _place(self, last: int) -> int:
        """Where the sample lies if the tokens up to `last` are kept."""
        last = min(last, len(self._masses) - 1)
        return min(bisect_right(self._masses, self._point * self._masses[last]), last)


def sample_allowed(
    candidates: Iterable[tuple[int, float]],
    total: float,
    params: SamplingParams,
    point: float,
    admits: Callable[[int], bool],
) -> int | None:
    """The token at `point` in [0, 1) of the masked and filtered distribution; None if unsure.

    `candidates` are the heaviest tokens of the whole distribution and their weights, in descending
    order, `total` is the weight of all tokens.
    """
    kept, allowed, unknown = _Kept(params, point), 0.0, total
    for token, weight in candidates:
        kept.close_before(weight)
        found = kept.sampled(allowed, allowed + unknown)
        if found is not None:
            return found
        unknown = max(unknown - weight, 0.0)
        if admits(token):
            allowed += weight
            kept.add(token, weight)
    # Others may be as heavy as the last of them.
    kept.close_before(math.inf)
    return kept.sampled(allowed, allowed + unknown)
