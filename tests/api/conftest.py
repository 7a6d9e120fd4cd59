"""One server with tools for the tests of all dialects."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.server import Server, stop_server
from tests.support.tools import TOOL_TEMPLATE, serve


@pytest.fixture(scope="session")
def tool_server(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The tiny model with a template that shows tools."""
    running = serve(tiny_model_dir, tmp_path_factory.mktemp("tools"), TOOL_TEMPLATE)
    yield running
    stop_server(running)
