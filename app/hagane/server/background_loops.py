"""The parts of the server that run by themselves, started and ended in order."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from hagane.api.eval_runs import EvalRunner
from hagane.api.key_usage import KeyUsageLog
from hagane.api.openai.batch_runner import BatchRunner
from hagane.api.openai.interrupted import fail_interrupted
from hagane.api.serving import Serving
from hagane.system.loops import BackgroundLoop
from hagane.text.hub import own_store
from hagane.text.pulling import sweep
from hagane.training.jobs.supervisor import Supervisor


@dataclass(frozen=True)
class BackgroundLoops:
    """The loops of one server; those that write to the store run only where it is durable."""

    serving: Serving
    supervisor: Supervisor
    announcing: BackgroundLoop
    batches: BatchRunner
    evals: EvalRunner
    key_usage: KeyUsageLog
    housekeeping: BackgroundLoop

    def __iter__(self) -> Iterator[BackgroundLoop]:
        yield self.announcing
        yield from self.serving.fleet.loops()
        yield from self.supervisor.loops
        yield self.batches.loop
        yield from self.serving.answers.loops
        yield self.serving.canaries.loop
        yield self.serving.history.loop
        if self.serving.store.database.shared:
            yield self.serving.shared.loop
        yield self.evals.loop
        yield self.key_usage.loop
        yield self.housekeeping

    async def start(self) -> None:
        """Start the engine, then what needs it."""
        serving = self.serving
        durable = serving.store.durable
        await serving.fleet.start()
        serving.shared.start()
        if durable:
            self.supervisor.start()
            await asyncio.to_thread(serving.exports.sweep)
        await asyncio.to_thread(sweep, own_store(serving.settings))
        self.batches.loop.start()
        if not serving.store.database.shared:
            await asyncio.to_thread(fail_interrupted, serving.store.responses)
        self.announcing.start()
        serving.answers.start()
        serving.canaries.loop.start()
        serving.history.loop.start()
        self.housekeeping.start()
        if durable:
            self.evals.loop.start()
            self.key_usage.loop.start()

    async def stop(self) -> None:
        """End what makes requests, then the engines and jobs."""
        serving, grace = self.serving, self.serving.settings.shutdown_grace
        serving.pulls.interrupt()
        await self.batches.stop()
        await serving.runs.stop()
        await asyncio.gather(
            self.announcing.stop(),
            self.evals.stop(),
            self.housekeeping.stop(),
            serving.exports.stop(),
            serving.history.loop.stop(),
            self.supervisor.stop(grace=grace),
            serving.fleet.stop(grace=grace),
        )
        # Last: streams that ended meanwhile have brought answers to store.
        await asyncio.gather(serving.answers.stop(), serving.canaries.stop(), self.key_usage.stop())
        await asyncio.gather(serving.shared.stop(), serving.toolbox.close())
        await asyncio.to_thread(serving.store.clear)
        # A hub may be silent for long: nothing else waits for that.
        await serving.pulls.stop()
