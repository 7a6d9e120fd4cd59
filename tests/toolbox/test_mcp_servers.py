"""A real MCP server, as a program and over HTTP."""

from __future__ import annotations

import asyncio
import os
import shlex
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from hagane.toolbox import mcp_servers as module
from hagane.toolbox.mcp_address import McpAddress
from hagane.toolbox.mcp_servers import McpServer
from hagane.toolbox.tool import ToolError

from tests.support.server import free_port

PROGRAM = Path(__file__).with_name("mcp_server.py")
# A program gets a short environment; what else it needs stands in the command.
COMMAND = shlex.join(
    ["env", f"PYTHONPATH={os.environ.get('PYTHONPATH', '')}", sys.executable, str(PROGRAM)]
)


@contextmanager
def on_http(*arguments):
    """The address of a server."""
    pytest.importorskip("mcp")
    port = free_port()
    command = [*shlex.split(COMMAND), str(port), *arguments]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}/mcp"
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def address():
    with on_http() as address:
        yield address


async def use(server: McpServer) -> None:
    tools = {tool.name: tool for tool in await server.tools()}
    add = tools["small__add"]
    assert (add.source, add.description) == ("small", "Adds two integers.")
    assert set(add.parameters["properties"]) == {"a", "b"}
    assert await add.run({"a": 2, "b": 40}) == "42"
    with pytest.raises(ToolError):
        await add.run({"a": "two"})
    with pytest.raises(ToolError, match="as it was meant to"):
        await tools["small__fail"].run({})
    assert await add.run({"a": 1, "b": 1}) == "2"


async def test_over_http(address):
    server = McpServer(McpAddress("small", address))
    await use(server)
    await server.close()


async def test_a_secret_goes_to_the_server_and_is_read_anew(monkeypatch, tmp_path):
    kept = tmp_path / "token"
    kept.write_text("wrong\n")
    monkeypatch.setenv("EXTRA_TOKEN", "another")
    with on_http("s3cret") as address:
        words = f"bearer=file:{kept} X-Token=env:EXTRA_TOKEN"
        server = McpServer(McpAddress.read(f"small={address} {words}"))
        with pytest.raises(ToolError) as refused:
            await server.tools()
        assert "wrong" not in str(refused.value)
        kept.write_text("s3cret\n")
        tools = {tool.name: tool for tool in await server.tools()}
        assert await tools["small__asked_with"].run({}) == "Bearer s3cret another"
        kept.unlink()
        assert await tools["small__add"].run({"a": 2, "b": 3}) == "5", "the connection has it"
        await server.close()


async def test_a_program_is_started_again_after_it_died():
    pytest.importorskip("mcp")
    server = McpServer(McpAddress("small", COMMAND))
    await use(server)
    tools = {tool.name: tool for tool in await server.tools()}
    with pytest.raises(ToolError, match="small"):
        await tools["small__leave"].run({})
    assert await tools["small__add"].run({"a": 3, "b": 4}) == "7"
    await server.close()


async def test_what_goes_wrong_is_the_callers_alone(monkeypatch, tmp_path):
    pytest.importorskip("mcp")
    server = McpServer(McpAddress("small", COMMAND))
    tools = {tool.name[7:]: tool for tool in await server.tools()}
    first = await tools["process"].run({})
    waiting = asyncio.create_task(tools["wait"].run({"path": str(tmp_path / "go")}))
    with pytest.raises(ToolError, match="not for you"):
        await tools["refuse"].run({})
    assert await tools["process"].run({}) == first, "a refusal is an answer"
    monkeypatch.setattr(module, "CALL_SECONDS", 0.2)
    with pytest.raises(ToolError, match=r"longer than 0\.2 s"):
        await tools["wait"].run({"path": str(tmp_path / "never")})
    monkeypatch.undo()
    # Nobody was answered in that time: the next gets a connection that lives for sure.
    second = await tools["process"].run({})
    assert second != first
    (tmp_path / "go").touch()
    assert await waiting == "waited"
    assert await tools["process"].run({}) == second, "the end of the old one is not the new one's"
    await server.close()


async def test_all_pages_of_tools_are_read_and_each_has_a_name_of_its_own():
    pytest.importorskip("mcp")
    server = McpServer(McpAddress("small", f"{COMMAND} pages"))
    tools = {tool.name: tool for tool in await server.tools()}
    assert max(map(len, tools)) == 64
    called = [await tool.run({}) for tool in tools.values()]
    assert called == ["a.b", "x" * 70 + "1", "a_b", "x" * 70 + "2"]
    assert "small__a_b" in tools
    await server.close()


async def test_nobody_there():
    pytest.importorskip("mcp")
    for target in ("http://127.0.0.1:1/mcp", "/no/such/program"):
        server = McpServer(McpAddress("gone", target))
        with pytest.raises(ToolError, match="gone"):
            await server.tools()
        await server.close()
