"""Steps launched before the one before them is finished: the same answers as in turn.

On the CPU a launched step is done at once, but the loop goes the way that it goes on a device.
"""

from __future__ import annotations

import pytest

from tests.support.engine import make_adapter
from tests.support.turns import Loop, play


@pytest.mark.parametrize("seed", range(8))
def test_answers_are_those_of_steps_in_turn(tiny_model_dir, tmp_path, seed):
    adapters = [make_adapter(tmp_path / "adapter", tiny_model_dir, 0)]
    # Little cache: sequences are preempted.
    size = {"kv_cache_memory": 1 << 16, "max_waiting": 64, "context_length": 96}
    loops = [Loop(tiny_model_dir, ahead=ahead, **size) for ahead in (False, True)]
    cancelled = set().union(*(play(loop, seed, adapters) for loop in loops))
    in_turn, ahead = (loop.said.answers() for loop in loops)
    assert not loops[1].said.failed
    # Which continuation has the prompt's log-probabilities depends on when another was cancelled.
    whole, same = ({key for key in said if key[0] not in cancelled} for said in (in_turn, ahead))
    assert len(whole) > 15
    assert whole == same
    for key in whole:
        assert ahead[key] == in_turn[key]
    for key in in_turn.keys() & ahead.keys() - whole:
        pairs = zip(in_turn[key][0], ahead[key][0], strict=False)
        assert all(ours == theirs for ours, theirs in pairs)
    assert any(loop.engine.scheduler.stats().preemptions for loop in loops)
    assert loops[0].overlapping == 0
    assert loops[1].overlapping > 50
