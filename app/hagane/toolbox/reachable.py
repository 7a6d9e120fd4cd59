"""Which hosts a page may be fetched from, and which of their addresses may be connected to.

A name proves nothing about the address behind it: it may be one of the operator's own network. A
host must be named, and each of its addresses be public or named as well:

    example.com, *.example.org     these hosts, on ports 80 and 443
    wiki.example.net:8443          this host on this port
    10.1.2.3:8080                  this address, private as it is
    intranet.example, 10.1.0.0/16  this host, whose addresses may be those of the network
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from hagane.system.errors import ConfigurationError

_PORTS = frozenset((80, 443))
# Addresses that carry others within: what they lead to would go unchecked.
_CARRIERS = tuple(
    ipaddress.ip_network(network) for network in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16")
)
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class ReachableHosts:
    """Hosts by name (`*.` for all below one) with their ports, and networks that may be private."""

    hosts: tuple[tuple[str, frozenset[int]], ...]
    networks: tuple[Network, ...]

    @classmethod
    def of(cls, entries: Iterable[str]) -> ReachableHosts:
        """Read the entries of a setting. Raises ConfigurationError for one that cannot be read."""
        hosts: list[tuple[str, frozenset[int]]] = []
        networks: list[Network] = []
        for entry in entries:
            if "/" in entry:
                networks.append(_network(entry))
                continue
            host, ports = _host(entry)
            hosts.append((host, ports))
            if (address := _address(host)) is not None:
                networks.append(ipaddress.ip_network(address))
        return cls(tuple(hosts), tuple(networks))

    def names(self, host: str, port: int) -> bool:
        """Whether the host is named with this port."""
        host = host.lower().rstrip(".")
        return any(
            port in ports and (host == named or (named[:2] == "*." and host.endswith(named[1:])))
            for named, ports in self.hosts
        )

    def allows(self, address: str) -> bool:
        """Whether an address that a named host has may be connected to."""
        found = _address(address)
        if found is None:
            return False
        if any(found in network for network in self.networks if network.version == found.version):
            return True
        if any(found in carrier for carrier in _CARRIERS if carrier.version == found.version):
            return False
        return found.is_global and not found.is_multicast


def _address(text: str) -> Address | None:
    """The address, that of IPv4 where one of IPv6 stands for it."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _network(entry: str) -> Network:
    try:
        return ipaddress.ip_network(entry, strict=False)
    except ValueError:
        raise ConfigurationError(
            f"fetch_hosts has {entry!r}, which is neither a host nor a network such as 10.1.0.0/16"
        ) from None


def _host(entry: str) -> tuple[str, frozenset[int]]:
    host, separator, port = entry.lower().rpartition(":")
    if not separator or (host.count(":") and not host.startswith("[")):
        host, port = entry.lower(), ""
    if port and not (port.isdecimal() and 0 < int(port) < 65536):
        raise ConfigurationError(f"fetch_hosts has {entry!r}, whose port is none")
    return host.strip("[]"), frozenset((int(port),)) if port else _PORTS
