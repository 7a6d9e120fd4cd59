"""Which names a server answers to, so that no web page reaches it under a name of its own.

A page at http://evil.example can have that name resolve to 127.0.0.1 and then read what is served
there (DNS rebinding); the Host header is still evil.example. An IP address cannot be rebound.
"""

from __future__ import annotations

import ipaddress
import socket

from hagane.system.settings import Settings

_LOOPBACK = ("localhost", "*.localhost")


class AllowedHosts:
    """The names that requests may be sent to: exact ones, and `*.name` for all below one."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._any = "*" in names
        self._exact = frozenset(name for name in names if not name.startswith("*"))
        self._suffixes = tuple(name[1:] for name in names if name.startswith("*."))

    @classmethod
    def of(cls, settings: Settings) -> AllowedHosts:
        """Those of the settings, loopback names, the addresses listened on and the machine's."""
        own = (settings.host, settings.admin_host, socket.gethostname())
        return cls((*_LOOPBACK, *(name.lower() for name in own), *settings.hosts))

    def __contains__(self, host: str) -> bool:
        """Whether a Host header's value, with or without a port, is one of them."""
        name = _without_port(host).lower().removesuffix(".")
        if self._any or name in self._exact or name.endswith(self._suffixes):
            return True
        return _is_address(name)


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
