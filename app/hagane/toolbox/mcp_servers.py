"""Tools of MCP servers that the operator names, by the protocol's own Python library.

https://modelcontextprotocol.io: Streamable HTTP for an address, standard input and output for a
command, which runs as the server's user.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import shlex
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from hagane.system.errors import ConfigurationError
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


@dataclass(frozen=True)
class McpAddress:
    """Where a server is: a URL, or a command that is started and spoken to."""

    name: str
    target: str

    @property
    def is_command(self) -> bool:
        """Whether the server is a program of this machine."""
        return not self.target.startswith(("http://", "https://"))

    @classmethod
    def read(cls, entry: str) -> McpAddress:
        """Read `NAME=URL` or `NAME=COMMAND ARGUMENT ...`. Raises ConfigurationError."""
        name, _, target = entry.partition("=")
        if not re.fullmatch(r"[A-Za-z0-9-]{1,32}", name) or not target.strip():
            raise ConfigurationError(
                f"mcp_servers has {entry!r}: write NAME=URL or NAME=COMMAND, with a name of "
                "letters, digits and hyphens"
            )
        return cls(name, target.strip())


def require_library() -> None:
    """Raises ConfigurationError where the library is not installed."""
    try:
        import mcp  # noqa: F401
    except ImportError:
        raise ConfigurationError(
            "mcp_servers needs the MCP library: pip install 'hagane[mcp]'"
        ) from None


class McpServer:
    """One server: connected when first asked, and again after it was lost."""

    def __init__(self, address: McpAddress) -> None:
        self.address = address
        self._client: Client | None = None
        self._holder: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()

    async def tools(self) -> list[Tool]:
        """The tools, their names beginning with the server's. Raises ToolError."""
        listed = await self._with(lambda client: client.list_tools(), CONNECT_SECONDS)
        return [
            Tool(
                name=self._name(tool.name),
                description=(tool.description or tool.name)[:_LONGEST_DESCRIPTION],
                parameters=dict(tool.input_schema),
                run=partial(self._call, tool.name),
                source=self.address.name,
            )
            for tool in listed.tools[:MOST_TOOLS]
        ]

    def _name(self, name: str) -> str:
        return re.sub(r"[^A-Za-z0-9_-]", "_", f"{self.address.name}__{name}")[:_LONGEST_NAME]

    async def _call(self, name: str, arguments: dict[str, Any]) -> str:
        result = await self._with(lambda client: client.call_tool(name, arguments), CALL_SECONDS)
        text = shortened("\n".join(map(_shown, result.content)))
        if result.is_error:
            raise ToolError(text or "the tool failed without a word")
        return text

    async def _with(self, ask: Callable[[Client], Awaitable[T]], seconds: float) -> T:
        try:
            async with asyncio.timeout(seconds):
                return await ask(await self._connected())
        except TimeoutError:
            await self.close()
            raise ToolError(f"{self.address.name} took longer than {seconds:g} s") from None
        except Exception as error:
            # The library's, the transport's, the server's: another connection is all that helps.
            await self.close()
            raise ToolError(f"{self.address.name}: {_reason(error)}") from None

    async def _connected(self) -> Client:
        async with self._connecting:
            if self._client is None:
                await self.close()
                ready: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
                self._holder = asyncio.create_task(self._hold(ready))
                self._client = await ready
            return self._client

    async def _hold(self, ready: asyncio.Future[Client]) -> None:
        """Open the connection and keep it: the library wants one task to open and to close it."""
        from mcp import Client

        try:
            async with Client(self._target(), read_timeout_seconds=CALL_SECONDS) as client:
                if not ready.done():
                    ready.set_result(client)
                await asyncio.Event().wait()
        except Exception as error:
            if not ready.done():
                ready.set_exception(error)
            else:
                logger.warning("MCP server %s: %s", self.address.name, _reason(error))
        finally:
            self._client = None

    def _target(self) -> Any:
        from mcp import StdioServerParameters

        if not self.address.is_command:
            return self.address.target
        command, *arguments = shlex.split(self.address.target)
        return StdioServerParameters(command=command, args=arguments)

    async def close(self) -> None:
        """End the connection, if there is one."""
        holder, self._holder, self._client = self._holder, None, None
        if holder is not None:
            holder.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await holder


def _shown(part: Any) -> str:
    """A part of a result; what is no text is named."""
    text = getattr(part, "text", None)
    return text if isinstance(text, str) else f"[{getattr(part, 'type', 'something')}]"


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) or type(error).__name__
