"""The encoder's engine: who goes first."""

from __future__ import annotations

from hagane.engine.encoding import EncoderEngine
from hagane.models.encoder_config import EncoderConfig
from hagane.pool.messages import IDLE_PRIORITY, GenerateRequest, SamplingParams

from tests.support.encoder import encoder
from tests.support.engine import config
from tests.support.turns import Recorder


def test_texts_of_idle_priority_go_last_and_in_steps_of_their_own(tmp_path):
    directory = encoder(tmp_path, "bert")
    said, found = Recorder(), EncoderConfig.find(directory)
    assert found is not None
    engine = EncoderEngine(config(directory), found, said)
    for name, priority in (("a", IDLE_PRIORITY), ("b", IDLE_PRIORITY), ("c", 0), ("d", 5)):
        engine.handle(
            GenerateRequest(
                request_id=name,
                prompt=(1, 2, 3),
                sampling=SamplingParams(max_tokens=1),
                priority=priority,
                pooling="mean",
            )
        )
    steps = []
    for _ in range(2):
        before = set(said.deltas)
        engine.turn()
        steps.append({name for name, _ in set(said.deltas) - before})
    assert steps == [{"c", "d"}, {"a", "b"}]
