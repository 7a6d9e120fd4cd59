"""The engine that answers for a run."""

from __future__ import annotations

import pytest
from hagane.system.errors import HaganeError
from hagane.training.finetune.spec import FineTuneSpec
from hagane.training.jobs.answering_engine import AnsweringEngine, answering_config


@pytest.mark.slow
def test_who_waits_for_an_engine_that_cannot_start_gets_the_reason(tiny_model_dir, tmp_path):
    spec = FineTuneSpec(model=tiny_model_dir, training_file=tmp_path / "none")
    config = answering_config(spec, tiny_model_dir, longest=100_000)
    with (
        AnsweringEngine(config) as engine,
        pytest.raises(HaganeError, match="context_length 100001 exceeds"),
    ):
        engine.ready()
