"""The sockets that servers listen on; without the server's imports, so that a port is had first."""

from __future__ import annotations

import errno
import socket

from hagane.system.errors import ConfigurationError


def listen(host: str, port: int, setting: str) -> list[socket.socket]:
    """A bound socket for every address of `host`; port 0 takes any.

    Raises ConfigurationError with the remedy, naming the setting of the port.
    """
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in _addresses(host, port):
            bound = socket.socket(family, kind, protocol)
            sockets.append(bound)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            bound.bind(address)
    except OSError as error:
        for bound in sockets:
            bound.close()
        raise ConfigurationError(_reason(error, host, port, setting)) from None
    return sockets


def _addresses(
    host: str, port: int
) -> list[tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[object, ...]]]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys(found))


def _reason(error: OSError, host: str, port: int, setting: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} of {host} is taken: end what listens there, or choose another one with "
            f"{setting} (--{setting.replace('_', '-')}, HAGANE_{setting.upper()})"
        )
    if error.errno == errno.EACCES:
        return f"port {port} of {host} needs rights that this user lacks: set {setting} above 1023"
    return f"cannot listen on {host}: {error.strerror}; name an address of this machine"
