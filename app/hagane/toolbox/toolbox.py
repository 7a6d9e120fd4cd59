"""All tools of a server."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import Any

from hagane.system.errors import ConfigurationError, NotFoundError
from hagane.toolbox.calculator import CALCULATOR
from hagane.toolbox.clock import CLOCK
from hagane.toolbox.fetch import fetch_tool
from hagane.toolbox.mcp_address import McpAddress
from hagane.toolbox.mcp_servers import McpServer, require_library
from hagane.toolbox.reachable import ReachableHosts
from hagane.toolbox.tool import Tool, ToolError

logger = logging.getLogger(__name__)

# Seconds for which what the MCP servers have is believed.
_KNOWN_SECONDS = 60.0
# Until one that did not answer is asked again.
_FAILED_SECONDS = 10.0
# Of each built-in tool, and of each MCP server.
_CALLS_AT_A_TIME = 16


class Toolbox:
    """The built-in tools, and those of the MCP servers at `addresses`."""

    def __init__(self, fetch_hosts: Iterable[str] = (), mcp_servers: Iterable[str] = ()) -> None:
        """Raises ConfigurationError for entries that cannot be read."""
        hosts = ReachableHosts.of(fetch_hosts)
        own = [CALCULATOR, CLOCK, *([fetch_tool(hosts)] if hosts.hosts else [])]
        self._own = {tool.name: (tool, _slots()) for tool in own}
        self._servers: dict[str, _Server] = {}
        for address in map(McpAddress.read, mcp_servers):
            if address.name in self._servers:
                raise ConfigurationError(f"mcp_servers names {address.name!r} twice")
            require_library()
            address.check()
            self._servers[address.name] = _Server(McpServer(address))

    async def tools(self) -> list[Tool]:
        """Every tool; those of a server that never answered are left out, and logged."""
        found = await asyncio.gather(*(server.tools() for server in self._servers.values()))
        own = [tool for tool, _ in self._own.values()]
        return [*own, *(tool for tools in found for tool in tools)]

    async def call(self, name: str, arguments: dict[str, Any]) -> str:
        """Run the tool. Raises ToolError for what it could not do, NotFoundError without it."""
        tool, slots = self._own.get(name) or await self._served(name)
        async with slots:
            return await tool.run(arguments)

    async def _served(self, name: str) -> tuple[Tool, asyncio.Semaphore]:
        """The tool of a server, which alone is asked. Raises NotFoundError."""
        if (server := self._servers.get(name.partition("__")[0])) is not None:
            for tool in await server.tools():
                if tool.name == name:
                    return tool, server.slots
        raise NotFoundError(f"There is no tool '{name}'.", param="name")

    async def close(self) -> None:
        """End the connections to MCP servers."""
        await asyncio.gather(*(server.connected.close() for server in self._servers.values()))


class _Server:
    """An MCP server, the tools that it last said it has, and slots for calls of them."""

    def __init__(self, connected: McpServer) -> None:
        self.connected = connected
        self.slots = _slots()
        self._tools: list[Tool] = []
        self._known_until = 0.0
        self._asking = asyncio.Lock()

    async def tools(self) -> list[Tool]:
        """Its tools; those that it had before where it does not answer."""
        async with self._asking:
            if time.monotonic() >= self._known_until:
                seconds = _KNOWN_SECONDS
                try:
                    self._tools = await self.connected.tools()
                except ToolError as error:
                    logger.warning("tools of an MCP server: %s", error)
                    seconds = _FAILED_SECONDS
                self._known_until = time.monotonic() + seconds
            return self._tools


def _slots() -> asyncio.Semaphore:
    return asyncio.Semaphore(_CALLS_AT_A_TIME)
