"""The loop's messages, and when they are sent."""

from __future__ import annotations

import pytest

from tests.support.engine import RunningEngine, config


@pytest.mark.parametrize("overlap", [False, True], ids=["at once", "while the next step runs"])
def test_every_token_is_said_in_order_and_the_last_ones_at_once(tiny_model_dir, overlap):
    prompts = [tuple(range(40 + i, 60 + i)) for i in range(4)]
    lengths = (1, 5, 12, 30)
    with RunningEngine(config(tiny_model_dir), overlap=overlap) as engine:
        for i, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
            engine.ask(str(i), prompt, tokens=length)
        together = engine.wait(*map(str, range(4)))
        for i, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
            engine.ask(f"alone {i}", prompt, tokens=length)
            (alone,) = engine.wait(f"alone {i}")
            assert alone.tokens == together[i].tokens
    assert [len(answer.tokens) for answer in together] == list(lengths)
