"""One browser for all tests of the pages, and one server for those of the chat page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.server import Server, start_server, stop_server
from tests.web.browser import STUDIO_KEY, chromium, endless_model, visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def endless_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose answers end only by a limit or by the user."""
    return endless_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def endless(endless_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The endless model's server, which may keep conversations."""
    folder = tmp_path_factory.mktemp("server")
    flags = ("--data-dir", str(folder / "data"), "--stored-chats", "1MiB")
    server = start_server(endless_dir, folder / "log", *flags)
    server.wait_ready()
    yield server
    stop_server(server)


@pytest.fixture(scope="session")
def studio(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with an admin key, a data directory, and another model in its store."""
    folder = tmp_path_factory.mktemp("studio")
    shutil.copytree(tiny_model_dir, folder / "store" / "second")
    flags = ("--data-dir", str(folder / "data"), "--models-dir", str(folder / "store"))
    server = start_server(tiny_model_dir, folder / "log", *flags, HAGANE_ADMIN_KEY=STUDIO_KEY)
    server.wait_ready()
    yield server
    stop_server(server)


@pytest.fixture
def page(browser: Browser, endless: Server) -> Iterator[Page]:
    """The chat page of the endless model."""
    with visit(browser, endless.url) as page:
        page.wait_for_selector("#model option", state="attached")
        yield page
