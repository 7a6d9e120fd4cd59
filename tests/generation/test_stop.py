"""Stop strings are found wherever the text is cut, in time linear in it."""

from __future__ import annotations

import time

from hagane.generation.stop import StopMatcher, StopStrings
from hypothesis import given, settings
from hypothesis import strategies as st


def cut(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The rest of `text`, by looking at every end in turn."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


@settings(max_examples=300, deadline=None)
@given(
    pieces=st.lists(st.text("ab", max_size=4), max_size=12),
    stops=st.lists(st.text("ab", min_size=1, max_size=5), max_size=4),
)
def test_the_cut_does_not_depend_on_the_pieces(pieces, stops):
    matcher = StopMatcher(StopStrings.prepare(stops))
    shown = "".join(map(matcher.push, pieces))
    expected, stopped = cut("".join(pieces), stops)
    assert expected.startswith(shown)
    assert (shown + matcher.finish(), matcher.stopped) == (expected, stopped)


def test_no_more_is_held_back_than_could_be_a_stop_string():
    matcher = StopMatcher(StopStrings.prepare(["abcd", "xy"]))
    assert [matcher.push(piece) for piece in ("ab", "c", "x", "z")] == ["", "", "abc", "xz"]


def test_the_time_is_linear_in_the_length_of_stops_and_text():
    started = time.process_time()
    matcher = StopMatcher(StopStrings.prepare(["b" * 999 + "a"] * 16))
    for _ in range(1000):
        matcher.push("bbbb")
    assert time.process_time() - started < 2
