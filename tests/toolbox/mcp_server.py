"""A small MCP server: `python mcp_server.py` on standard input, or with a port on HTTP.

`python mcp_server.py pages` has other tools, some on each page of its list.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from mcp import MCPError
from mcp.server import MCPServer
from mcp.server.lowlevel import Server
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.stdio import stdio_server
from mcp.types import CallToolResult, ListToolsResult, TextContent, Tool

# The last differ in what is cut off; one is on two pages.
PAGES = [["a.b", "x" * 70 + "1"], [], ["a_b", "a.b", "x" * 70 + "2"]]
server = MCPServer("small")


@server.tool()
def add(a: int, b: int) -> int:
    """Adds two integers."""
    return a + b


@server.tool()
def fail() -> str:
    """Fails."""
    raise ToolError("as it was meant to")


@server.tool()
def leave() -> str:
    """Ends the server."""
    os._exit(1)


@server.tool()
def refuse() -> str:
    """Is refused by the protocol."""
    raise MCPError(1234, "not for you")


@server.tool()
async def wait(path: str) -> str:
    """Waits for a file."""
    while not Path(path).exists():
        await asyncio.sleep(0.02)
    return "waited"


@server.tool()
def process() -> int:
    """The number of the server's process."""
    return os.getpid()


async def list_page(_, params) -> ListToolsResult:
    page = int(params.cursor or 0) if params else 0
    tools = [Tool(name=name, input_schema={"type": "object"}) for name in PAGES[page]]
    following = str(page + 1) if page + 1 < len(PAGES) else None
    return ListToolsResult(tools=tools, next_cursor=following)


async def call_name(_, params) -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text=params.name)])


async def run_pages() -> None:
    paging = Server("pages", on_list_tools=list_page, on_call_tool=call_name)
    async with stdio_server() as (reading, writing):
        await paging.run(reading, writing, paging.create_initialization_options())


if __name__ == "__main__":
    if sys.argv[1:] == ["pages"]:
        asyncio.run(run_pages())
    elif len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run("stdio")
