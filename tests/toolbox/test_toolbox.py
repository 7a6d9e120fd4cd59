"""The tools that a server has by its settings."""

from __future__ import annotations

import pytest
from hagane.system.errors import ConfigurationError, NotFoundError
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


def test_entries_are_checked_at_the_start():
    with pytest.raises(ConfigurationError):
        Toolbox(mcp_servers=["nameless"])
