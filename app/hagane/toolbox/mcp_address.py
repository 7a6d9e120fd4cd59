"""Where an MCP server is, and the headers that it is asked with."""

from __future__ import annotations

import logging
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from hagane.system.errors import ConfigurationError

logger = logging.getLogger(__name__)

# A token of RFC 9110, by which a header is called.
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True)
class Secret:
    """The value of a header: it stands in an environment variable or a file, never in the settings.

    `header` is what the entry calls it; `bearer` is a token in `Authorization`.
    """

    header: str
    source: str
    place: str

    @classmethod
    def read(cls, word: str) -> Secret:
        """Read `HEADER=env:NAME` or `HEADER=file:PATH`. Raises ConfigurationError."""
        header, _, value = word.partition("=")
        source, _, place = value.partition(":")
        if not _HEADER.fullmatch(header) or source not in ("env", "file") or not place:
            raise _unreadable()
        return cls(header, source, place)

    def shown(self) -> tuple[str, str]:
        """The header as it is sent. Raises ConfigurationError when there is no value."""
        try:
            value = (
                os.environ.get(self.place, "")
                if self.source == "env"
                else Path(self.place).expanduser().read_text(encoding="utf-8")
            ).strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            message = f"mcp_servers: {self.place} cannot be read: {reason}"
            raise ConfigurationError(message) from None
        if not value or not value.isascii() or not value.isprintable():
            place = f"the variable {self.place}" if self.source == "env" else self.place
            raise ConfigurationError(f"mcp_servers: {place} is not one line of ASCII")
        if self.header.lower() == "bearer":
            return "Authorization", f"Bearer {value}"
        return self.header, value


def _unreadable() -> ConfigurationError:
    # What was written may be a secret: it is not repeated.
    return ConfigurationError(
        "mcp_servers has something after an address that cannot be read: "
        "write bearer=env:NAME, bearer=file:PATH, or a header's name in the place of bearer"
    )


@dataclass(frozen=True)
class McpAddress:
    """Where a server is: a URL, or a command that is started and spoken to."""

    name: str
    target: str
    secrets: tuple[Secret, ...] = ()

    @property
    def is_command(self) -> bool:
        """Whether the server is a program of this machine."""
        return not self.target.startswith(("http://", "https://"))

    @classmethod
    def read(cls, entry: str) -> McpAddress:
        """Read `NAME=URL [HEADER=env:VARIABLE ...]` or `NAME=COMMAND ARGUMENT ...`.

        Raises ConfigurationError.
        """
        name, _, target = entry.partition("=")
        target = target.strip()
        if not re.fullmatch(r"[A-Za-z0-9-]{1,32}", name) or not target:
            raise ConfigurationError(
                f"mcp_servers has {entry!r}: write NAME=URL or NAME=COMMAND, with a name of "
                "letters, digits and hyphens"
            )
        address = cls(name, target)
        if address.is_command:
            return address
        url, *rest = target.split(maxsplit=1)
        try:
            words = shlex.split(rest[0]) if rest else []
        except ValueError:
            raise _unreadable() from None
        return cls(name, url, tuple(map(Secret.read, words)))

    def headers(self) -> dict[str, str]:
        """The headers with their secrets, read anew. Raises ConfigurationError."""
        return dict(secret.shown() for secret in self.secrets)

    def check(self) -> None:
        """Find out at the start whether the secrets are there. Raises ConfigurationError."""
        url = urlsplit(self.target)
        if self.headers() and url.scheme == "http" and url.hostname not in _LOOPBACK:
            logger.warning("MCP server %s: its secret goes over the network unencrypted", self.name)
