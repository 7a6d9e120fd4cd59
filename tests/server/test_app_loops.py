"""The loops that an application runs: each is named, and outlives what its rounds raise."""

from __future__ import annotations

import asyncio
import logging

from hagane.server.app import create_app
from hagane.system.settings import Settings
from hagane.text.hub_files import find_on_hub
from hagane.text.pulling import Pull

from tests.support.hub import hub


class FailsOnce(logging.Filter):
    """Raises where the readiness is first logged, which the announcer does."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def filter(self, record: logging.LogRecord) -> bool:
        if "is ready on" in record.msg:
            self.seen += 1
            if self.seen == 1:
                raise OSError("the log is gone")
        return True


async def test_the_announcer_goes_on_after_a_fault(tiny_model_dir, tmp_path):
    settings = Settings(
        model=str(tiny_model_dir), data_dir=tmp_path, admin_key="secret", threads=1,
        _cli_parse_args=False,
    )  # fmt: skip
    app = create_app(settings, lambda: None)
    loops = {loop.name: loop for loop in app.state.serving.loops()}
    assert set(loops) >= {
        "announcements", "engine supervision", "idle models", "job validation", "job training",
    }  # fmt: skip
    fault = FailsOnce()
    logger = logging.getLogger("hagane.server.app")
    logger.setLevel(logging.INFO)
    logger.addFilter(fault)
    try:
        async with app.router.lifespan_context(app), asyncio.timeout(60):
            while fault.seen < 2:
                await asyncio.sleep(0.05)
            assert loops["announcements"].failures == 1
            assert all(loop.running and not loop.failing for loop in loops.values())
    finally:
        logger.removeFilter(fault)
        logger.setLevel(logging.NOTSET)


async def test_a_silent_hub_keeps_nothing_else_from_ending(tiny_model_dir, tmp_path):
    settings = Settings(
        model=str(tiny_model_dir), data_dir=tmp_path, admin_key="secret", threads=1,
        _cli_parse_args=False,
    )  # fmt: skip
    app = create_app(settings, lambda: None)
    serving = app.state.serving
    end = asyncio.Event()

    async def live() -> None:
        async with app.router.lifespan_context(app):
            await end.wait()

    with hub({"me/x/x.gguf": b"x" * 1000}) as remote:
        remote.held = True
        found = await asyncio.to_thread(find_on_hub, "me/x", remote.url)
        pull = Pull(found, tmp_path / "store", "x")
        pull.folder.mkdir(parents=True)
        (pull.folder / "x.gguf.partial").write_bytes(b"x" * 10)
        living = asyncio.create_task(live())
        try:
            async with asyncio.timeout(60):
                started = serving.pulls.start(pull)
                while not remote.ranges:
                    await asyncio.sleep(0.01)
                while not all(loop.running for loop in serving.loops()):
                    await asyncio.sleep(0.01)
                end.set()
                while any(loop.running for loop in serving.loops()):
                    await asyncio.sleep(0.01)
            assert started.running
        finally:
            end.set()
            remote.held = False
            await living
        assert started.status == "cancelled"
