"""An exception of one entry of a background loop fails or delays that entry alone."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hagane.api.background import BackgroundRun, BackgroundRuns
from hagane.api.canaries import CanaryWatch
from hagane.api.eval_runs import EvalRunner
from hagane.api.openai.batch_runner import BatchRunner
from hagane.store.aliases import AliasGeneration
from hagane.store.answers.canaries import Canary
from hagane.store.answers.evals import Eval, EvalRun
from hagane.store.batches import StoredBatch
from hagane.store.store import Store
from prometheus_client import CollectorRegistry


@pytest.fixture
def store(tmp_path):
    opened = Store.open(tmp_path / "data")
    yield opened
    opened.close()


async def test_an_eval_run_that_cannot_be_read_fails_and_the_next_one_is_taken(store):
    """Runs of a later version have sources that this one does not know."""
    evals = store.answers.evals
    made = Eval(name="e", data_source_config={}, testing_criteria=[])
    evals.add(made)
    runs = [
        EvalRun(eval=made.id, name="r", model="tiny", data_source={"type": "later"})
        for _ in range(2)
    ]
    for run in runs:
        evals.add_run(run)
    runner = EvalRunner(SimpleNamespace(store=store), None)
    runner.loop.start()
    async with asyncio.timeout(20):
        while evals.run(runs[1].id).status != "failed":
            await asyncio.sleep(0.01)
    await runner.stop()
    assert [evals.run(run.id).error["code"] for run in runs] == ["internal_error"] * 2
    assert runner.loop.failures == 0


async def test_a_canary_that_cannot_be_judged_keeps_none_of_the_others(store):
    canaries = store.answers.canaries
    alias = store.aliases.set(AliasGeneration("broken", "tiny", "tiny", 50))
    broken = Canary(
        alias="broken", generation=alias.generation, target="tiny", candidate="tiny",
        policy={"later": True},
    )  # fmt: skip
    canaries.add(broken)
    canaries.add(replace(broken, alias="gone", id="canary-gone"))
    watch = CanaryWatch(store.aliases, store.answers, CollectorRegistry())
    watch.loop.start()
    async with asyncio.timeout(20):
        while not watch.loop.failures:
            await asyncio.sleep(0.01)
    assert canaries.latest("gone").state == "superseded"
    assert canaries.latest("broken").state == "running"
    await watch.stop()


async def test_a_fault_in_an_answer_of_the_background_ends_it_and_is_logged(caplog):
    async def events():
        yield {"type": "first"}
        raise OSError("the store is gone")

    class Account:
        def counted(self):
            return contextlib.nullcontext()

    runs, run = BackgroundRuns(), BackgroundRun("resp_1", "owner", {})
    runs.start(run, Account(), events())
    async with asyncio.timeout(5):
        assert [event["type"] async for event in run.follow(-1)] == ["first"]
    assert "resp_1 could not be made" in caplog.text
    assert "the store is gone" in caplog.text


async def test_a_batch_that_cannot_be_run_fails_and_the_next_one_is_taken(store):
    """A fault of the program, in either step: here the server has no settings, and no file."""
    serving = SimpleNamespace(store=store, settings=SimpleNamespace(max_sequences=4))
    moments = {"created_at": int(time.time()), "expires_at": int(time.time()) + 3600}
    names = ("first", "second")
    for name, status in zip(names, ("in_progress", "validating"), strict=True):
        store.batches.add(
            StoredBatch(
                id=name, status=status, endpoint="/v1/completions", input_file="../" * 200,
                completion_window="24h", metadata={}, moments={}, counts={}, errors=[], **moments,
            )
        )  # fmt: skip
    runner = BatchRunner(None, serving)
    runner.loop.start()
    async with asyncio.timeout(20):
        while store.batches.get(names[1]).status != "failed":
            await asyncio.sleep(0.01)
    await runner.loop.stop()
    assert [store.batches.get(name).status for name in names] == ["failed"] * 2
    assert store.batches.get(names[0]).errors[0]["code"] == "internal_error"
    assert runner.loop.failures == 0
