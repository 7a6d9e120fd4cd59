"""A small MCP server: `python mcp_server.py` on standard input, or with a port on HTTP.

`python mcp_server.py pages` has other tools, some on each page of its list. A second argument is
the token without which HTTP is refused.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import uvicorn
from mcp import MCPError
from mcp.server import MCPServer
from mcp.server.lowlevel import Server
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.stdio import stdio_server
from mcp.types import CallToolResult, ListToolsResult, TextContent, Tool
from starlette.responses import PlainTextResponse

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


@server.tool()
def asked_with(context: Context) -> str:
    """The headers `Authorization` and `X-Token` of this call."""
    headers = context.request_context.request.headers
    return f"{headers['authorization']} {headers.get('x-token')}"


def guarded(token: str):
    """The application, for whoever has the token."""
    inner = server.streamable_http_app()

    async def application(scope, receive, send):
        sent = dict(scope.get("headers", ())).get(b"authorization")
        if scope["type"] == "http" and sent != f"Bearer {token}".encode():
            await PlainTextResponse("no", 401)(scope, receive, send)
        else:
            await inner(scope, receive, send)

    return application


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
    elif len(sys.argv) > 2:
        uvicorn.run(guarded(sys.argv[2]), port=int(sys.argv[1]), log_level="warning")
    elif len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run("stdio")
