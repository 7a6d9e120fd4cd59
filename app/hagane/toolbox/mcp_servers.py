"""Tools of MCP servers that the operator names, by the protocol's own Python library.

https://modelcontextprotocol.io: Streamable HTTP for an address, standard input and output for a
command, which runs as the server's user.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import re
import shlex
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Container
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from hagane.system.errors import ConfigurationError
from hagane.system.installation import install_command
from hagane.toolbox.mcp_address import McpAddress
from hagane.toolbox.tool import Tool, ToolError, shortened

if TYPE_CHECKING:
    from mcp import Client

logger = logging.getLogger(__name__)
T = TypeVar("T")

CONNECT_SECONDS = 20.0
CALL_SECONDS = 120.0
MOST_TOOLS = 64
_LONGEST_NAME = 64
_LONGEST_DESCRIPTION = 2_000


def require_library() -> None:
    """Raises ConfigurationError where the library is not installed."""
    try:
        import mcp  # noqa: F401
    except ImportError:
        raise ConfigurationError(
            f"mcp_servers needs the MCP library: {install_command('mcp')}"
        ) from None


class McpServer:
    """One server: connected when first asked, and again after it was lost."""

    def __init__(self, address: McpAddress) -> None:
        self.address = address
        self._connections: list[_Connection] = []

    async def tools(self) -> list[Tool]:
        """The tools, their names beginning with the server's. Raises ToolError."""
        listed = {tool.name: tool for tool in await self._with(_listed, CONNECT_SECONDS)}
        if len(listed) > MOST_TOOLS:
            logger.warning("MCP server %s: only %d tools are used", self.address.name, MOST_TOOLS)
        tools: dict[str, Tool] = {}
        for tool in list(listed.values())[:MOST_TOOLS]:
            name = self._name(tool.name, tools)
            tools[name] = Tool(
                name=name,
                description=(tool.description or tool.name)[:_LONGEST_DESCRIPTION],
                parameters=dict(tool.input_schema),
                run=partial(self._call, tool.name),
                source=self.address.name,
            )
        return list(tools.values())

    def _name(self, name: str, taken: Container[str]) -> str:
        """The name for models; it ends in a hash where it is too long, or another tool has it."""
        plain = re.sub(r"[^A-Za-z0-9_-]", "_", f"{self.address.name}__{name}")
        if len(plain) <= _LONGEST_NAME and plain not in taken:
            return plain
        return f"{plain[: _LONGEST_NAME - 9]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"

    async def _call(self, name: str, arguments: dict[str, Any]) -> str:
        result = await self._with(lambda client: client.call_tool(name, arguments), CALL_SECONDS)
        text = shortened("\n".join(map(_shown, result.content)))
        if result.is_error:
            raise ToolError(text or "the tool failed without a word")
        return text

    async def _with(self, ask: Callable[[Client], Awaitable[T]], seconds: float) -> T:
        """The answer. What goes wrong is the caller's alone: others keep their connection."""
        connection = self._connected()
        begun = time.monotonic()
        try:
            async with asyncio.timeout(seconds), connection.client() as client:
                answer = await ask(client)
        except TimeoutError:
            if connection.heard < begun:
                # Nobody was answered all the while: the connection may be dead.
                connection.leave()
            raise ToolError(f"{self.address.name} took longer than {seconds:g} s") from None
        except Exception as error:
            if _is_answer(error):
                connection.heard = time.monotonic()
            else:
                connection.leave()
            raise ToolError(f"{self.address.name}: {_reason(error)}") from None
        connection.heard = time.monotonic()
        return answer

    def _connected(self) -> _Connection:
        """The connection for new requests, which may still be opening."""
        self._connections = [one for one in self._connections if not one.is_over]
        if not self._connections or self._connections[-1].is_left:
            self._connections.append(_Connection(self.address))
        return self._connections[-1]

    async def close(self) -> None:
        """End the connections, if there are any."""
        await asyncio.gather(*(connection.close() for connection in self._connections))


class _Connection:
    """A connection, until it is left and nobody waits for an answer by it any more.

    A task of its own opens, holds and closes it: the library wants one task to do that. `heard` is
    when the server last answered, by the monotonic clock.
    """

    def __init__(self, address: McpAddress) -> None:
        self.heard = -math.inf
        self.is_left = False
        self._is_ending = False
        self._address = address
        self._opened: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
        self._users = 0
        self._holder = asyncio.create_task(self._hold())
        self._holder.add_done_callback(self._settle)

    @property
    def is_over(self) -> bool:
        """Whether it is closed, or never came to be."""
        return self._holder.done()

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """The client, once it is there. Raises what the library does where it cannot be."""
        self._users += 1
        try:
            yield await asyncio.shield(self._opened)
        finally:
            self._users -= 1
            self._end_unless_used()

    def leave(self) -> None:
        """Take no more requests; those that are waiting still get their answers."""
        self.is_left = True
        self._end_unless_used()

    def _end_unless_used(self) -> None:
        if self.is_left and not self._users:
            self._end()

    def _end(self) -> None:
        # Once: a second time would break off the closing itself.
        if not self._is_ending:
            self._is_ending = True
            self._holder.cancel()

    async def close(self) -> None:
        """End it, whoever waits."""
        self.is_left = True
        self._end()
        await asyncio.wait([self._holder])

    async def _hold(self) -> None:
        from mcp import Client

        try:
            async with AsyncExitStack() as stack:
                target = await self._target(stack)
                client = Client(target, read_timeout_seconds=CALL_SECONDS)
                self._opened.set_result(await stack.enter_async_context(client))
                await asyncio.Event().wait()
        except Exception as error:
            if self._opened.done():
                logger.warning("MCP server %s: %s", self._address.name, _reason(error))
            else:
                self._opened.set_exception(error)

    def _settle(self, _: asyncio.Task[None]) -> None:
        """Let nobody wait for a connection that will not be, nor asyncio complain of that."""
        if not self._opened.done():
            self._opened.set_exception(ConnectionError("the connection was closed"))
        self._opened.exception()

    async def _target(self, stack: AsyncExitStack) -> Any:
        """What the library connects to; `stack` closes what that needs."""
        if self._address.is_command:
            from mcp import StdioServerParameters

            command, *arguments = shlex.split(self._address.target)
            return StdioServerParameters(command=command, args=arguments)
        if not self._address.secrets:
            return self._address.target
        from httpx2 import AsyncClient, Timeout
        from mcp.client.streamable_http import streamable_http_client

        # The library follows redirects within the address's origin only: nobody else gets a secret.
        asking = AsyncClient(headers=self._address.headers(), timeout=Timeout(CALL_SECONDS))
        await stack.enter_async_context(asking)
        return streamable_http_client(self._address.target, http_client=asking)


async def _listed(client: Client) -> list[Any]:
    """The server's tools, page by page, until there are more than enough."""
    tools: list[Any] = []
    cursor: str | None = None
    for _ in range(MOST_TOOLS):
        page = await client.list_tools(cursor=cursor)
        tools += page.tools
        cursor = page.next_cursor
        if not cursor or len(tools) > MOST_TOOLS:
            break
    return tools


def _is_answer(error: Exception) -> bool:
    """Whether the server itself refused a request, by a connection as good as before."""
    from mcp import MCPError
    from mcp.types import CONNECTION_CLOSED, INVALID_REQUEST, REQUEST_TIMEOUT

    # With the last two, servers and the library say that a session is over.
    lost = (CONNECTION_CLOSED, INVALID_REQUEST, REQUEST_TIMEOUT)
    return isinstance(error, MCPError) and error.code not in lost


def _shown(part: Any) -> str:
    """A part of a result; what is no text is named."""
    text = getattr(part, "text", None)
    return text if isinstance(text, str) else f"[{getattr(part, 'type', 'something')}]"


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) or type(error).__name__
