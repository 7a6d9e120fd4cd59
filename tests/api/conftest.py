"""Servers for the tests of all dialects: with tools, with markers as tokens, with narrow bounds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engine import make_adapter
from tests.support.server import ADMIN_KEY, Server, free_port, start_server, stop_server
from tests.support.tools import FENCED, THINKING_TEMPLATE, TOOL_TEMPLATE, serve, with_markers


@pytest.fixture(scope="session")
def tool_server(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The tiny model with a template that shows tools."""
    running = serve(tiny_model_dir, tmp_path_factory.mktemp("tools"), TOOL_TEMPLATE)
    yield running
    stop_server(running)


@pytest.fixture(scope="session")
def marked_server(
    tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A model whose markers are tokens: 3 and 4 of calls, 5 and 6 of reasoning, 7 to 9 of gaps.

    FENCED is a token, too.
    """
    folder = tmp_path_factory.mktemp("marked")
    markers = ("<tool_call>", "</tool_call>", "<think>", "</think>")
    markers += ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
    made = with_markers(tiny_model_dir, folder / "made", *markers, text=FENCED)
    running = serve(made, folder, THINKING_TEMPLATE)
    yield running
    stop_server(running)


@pytest.fixture(scope="session")
def admin_listener() -> int:
    """The port of the narrow server's administrators."""
    return free_port()


@pytest.fixture(scope="session")
def named_adapter(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory):
    """The adapter that the narrow server calls `mine`."""
    return make_adapter(tmp_path_factory.mktemp("from elsewhere") / "a", tiny_model_dir, seed=5)


@pytest.fixture(scope="session")
def narrow_server(
    tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory, admin_listener, named_adapter
) -> Iterator[Server]:
    """One request at a time and one that waits, an int8 cache, an adapter and a draft, admins
    elsewhere."""
    folder = tmp_path_factory.mktemp("narrow")
    running = start_server(
        tiny_model_dir, folder / "log", "--data-dir", str(folder / "data"),
        "--max-sequences", "1", "--max-waiting", "1",
        "--kv-cache-memory", "8MiB", "--kv-cache-dtype", "int8",
        "--draft-model", str(tiny_model_dir),
        "--adapter", f"mine={named_adapter.directory}", "--admin-port", str(admin_listener),
        HAGANE_API_KEYS="one,two", HAGANE_ADMIN_KEY=ADMIN_KEY,
    )  # fmt: skip
    running.wait_ready()
    yield running
    stop_server(running)
