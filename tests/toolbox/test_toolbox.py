"""The tools that a server has by its settings."""

from __future__ import annotations

import asyncio
import shlex

import pytest
from hagane.system.errors import ConfigurationError, NotFoundError
from hagane.toolbox import toolbox as module
from hagane.toolbox.tool import ToolError
from hagane.toolbox.toolbox import Toolbox

from tests.toolbox.test_mcp_servers import COMMAND


async def test_fetch_is_there_only_with_hosts():
    assert [tool.name for tool in await Toolbox().tools()] == ["calculator", "clock"]
    tools = await Toolbox(["example.com"]).tools()
    assert [tool.name for tool in tools] == ["calculator", "clock", "fetch"]
    # A network alone names no host.
    assert len(await Toolbox(["10.0.0.0/8"]).tools()) == 2


async def test_calls():
    toolbox = Toolbox()
    assert await toolbox.call("calculator", {"expression": "6 * 7"}) == "42"
    assert "Asia/Tokyo (UTC+09:00)" in await toolbox.call("clock", {"time_zone": "Asia/Tokyo"})
    with pytest.raises(ToolError, match="'expression' must be a text"):
        await toolbox.call("calculator", {"expression": 42})
    with pytest.raises(NotFoundError):
        await toolbox.call("fetch", {"url": "http://example.com"})


async def test_servers_that_do_not_answer_are_left_out():
    pytest.importorskip("mcp")
    toolbox = Toolbox(mcp_servers=["gone=/no/such/program", f"small={COMMAND}"])
    names = {tool.name for tool in await toolbox.tools()}
    assert {"calculator", "clock", "small__add"} <= names
    assert await toolbox.call("small__add", {"a": 40, "b": 2}) == "42"
    await toolbox.close()


async def test_a_slow_server_keeps_no_other_tool_waiting(monkeypatch, tmp_path):
    pytest.importorskip("mcp")
    monkeypatch.setattr(module, "_CALLS_AT_A_TIME", 1)
    toolbox = Toolbox(mcp_servers=["silent=sh -c 'cat > /dev/null'", f"small={COMMAND}"])
    listing = asyncio.create_task(toolbox.tools())
    calling = asyncio.create_task(toolbox.call("small__wait", {"path": str(tmp_path / "go")}))
    await asyncio.sleep(0.1)
    assert await toolbox.call("calculator", {"expression": "6 * 7"}) == "42"
    assert not listing.done()
    assert not calling.done()
    (tmp_path / "go").touch()
    assert await calling == "waited"
    assert not listing.done(), "the silent server did answer"
    listing.cancel()
    await toolbox.close()


async def test_a_server_that_does_not_answer_keeps_its_tools(monkeypatch, tmp_path):
    pytest.importorskip("mcp")
    monkeypatch.setattr(module, "_KNOWN_SECONDS", 0.0)
    once = shlex.join(["sh", "-c", f"mkdir {tmp_path / 'begun'} && exec {COMMAND}"])
    toolbox = Toolbox(mcp_servers=[f"small={once}"])
    names = [tool.name for tool in await toolbox.tools()]
    with pytest.raises(ToolError, match="small"):
        await toolbox.call("small__leave", {})
    assert [tool.name for tool in await toolbox.tools()] == names
    with pytest.raises(NotFoundError):
        await toolbox.call("small__nothing", {})
    await toolbox.close()


def test_entries_are_checked_at_the_start():
    with pytest.raises(ConfigurationError):
        Toolbox(mcp_servers=["nameless"])


def test_a_server_is_named_once():
    pytest.importorskip("mcp")
    with pytest.raises(ConfigurationError, match="'small' twice"):
        Toolbox(mcp_servers=["small=a", "small=b"])
