"""Prompt look-up: guess the next tokens from an earlier place where the last ones stood.

Editing code, quoting a text and filling in tables repeat long stretches of the prompt. A guess
costs no model; it is checked by the same forward pass that computes the next token anyway.
Yang et al., "Inference with Reference" (2023), https://arxiv.org/abs/2304.04487
"""

from __future__ import annotations

from dataclasses import dataclass

# Tokens that must match: two of them stand by chance too often in code.
KEY = 3
# Earlier places compared, the latest ones: templates repeat one beginning with many endings.
_PLACES = 8
# Tokens compared backwards to tell the places apart.
_LONGEST_MATCH = 32


@dataclass(frozen=True)
class Match:
    """Tokens that may follow, and how many tokens before them are those before the place found."""

    tokens: list[int]
    length: int


NOTHING = Match([], 0)


class NgramIndex:
    """Where every run of KEY tokens of a sequence stands. Adding a token takes constant time."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._places: dict[tuple[int, ...], list[int]] = {}

    def __len__(self) -> int:
        return len(self._tokens)

    def extend(self, tokens: list[int]) -> None:
        """Add the tokens that follow those that are there."""
        known = self._tokens
        for token in tokens:
            known.append(token)
            if len(known) > KEY:
                # The run that ends before this token: what follows it is known from now on.
                run = tuple(known[-KEY - 1 : -1])
                places = self._places.setdefault(run, [])
                places.append(len(known) - 1)
                if len(places) > _PLACES:
                    del places[0]

    def propose(self, most: int) -> Match:
        """Up to `most` tokens that may follow, from the place whose past matches longest.

        Of equal matches the latest counts. NOTHING where the last KEY tokens stand nowhere else. A
        place so late that the text ends before `most` tokens is the beginning of a repetition,
        which is carried on.
        """
        known = self._tokens
        if most < 1 or len(known) < KEY:
            return NOTHING
        places = self._places.get(tuple(known[-KEY:]), ())
        best, longest = None, 0
        for place in reversed(places):
            match = self._match(place)
            if match > longest:
                best, longest = place, match
        if best is None:
            return NOTHING
        period = len(known) - best
        return Match([known[best + n % period] for n in range(most)], longest)

    def _match(self, place: int) -> int:
        known, end = self._tokens, len(self._tokens)
        limit = min(_LONGEST_MATCH, place)
        count = KEY
        while count < limit and known[place - count - 1] == known[end - count - 1]:
            count += 1
        return count
