"""All tools of a server."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import Any

from hagane.system.errors import NotFoundError
from hagane.toolbox.calculator import CALCULATOR
from hagane.toolbox.clock import CLOCK
from hagane.toolbox.fetch import fetch_tool
from hagane.toolbox.mcp_servers import McpAddress, McpServer, require_library
from hagane.toolbox.reachable import ReachableHosts
from hagane.toolbox.tool import Tool, ToolError

logger = logging.getLogger(__name__)

# Seconds for which what the MCP servers have is believed.
_KNOWN_SECONDS = 60.0
_CALLS_AT_A_TIME = 16


class Toolbox:
    """The built-in tools, and those of the MCP servers at `addresses`."""

    def __init__(self, fetch_hosts: Iterable[str] = (), mcp_servers: Iterable[str] = ()) -> None:
        """Raises ConfigurationError for entries that cannot be read."""
        hosts = ReachableHosts.of(fetch_hosts)
        self._own = [CALCULATOR, CLOCK, *([fetch_tool(hosts)] if hosts.hosts else [])]
        addresses = [McpAddress.read(entry) for entry in mcp_servers]
        if addresses:
            require_library()
        self._servers = [McpServer(address) for address in addresses]
        self._found: dict[str, tuple[float, list[Tool]]] = {}
        self._asking = asyncio.Lock()
        self._calls = asyncio.Semaphore(_CALLS_AT_A_TIME)

    async def tools(self) -> list[Tool]:
        """Every tool; those of a server that does not answer are left out, and logged."""
        async with self._asking:
            found = await asyncio.gather(*map(self._tools_of, self._servers))
        return [*self._own, *(tool for tools in found for tool in tools)]

    async def _tools_of(self, server: McpServer) -> list[Tool]:
        name = server.address.name
        at, tools = self._found.get(name, (0.0, []))
        if at and time.monotonic() - at < _KNOWN_SECONDS:
            return tools
        try:
            tools = await server.tools()
        except ToolError as error:
            logger.warning("tools of an MCP server: %s", error)
            tools = []
        self._found[name] = (time.monotonic(), tools)
        return tools

    async def call(self, name: str, arguments: dict[str, Any]) -> str:
        """Run the tool. Raises ToolError for what it could not do, NotFoundError without it."""
        found = next((tool for tool in await self.tools() if tool.name == name), None)
        if found is None:
            raise NotFoundError(f"There is no tool '{name}'.", param="name")
        async with self._calls:
            return await found.run(arguments)

    async def close(self) -> None:
        """End the connections to MCP servers."""
        await asyncio.gather(*(server.close() for server in self._servers))
