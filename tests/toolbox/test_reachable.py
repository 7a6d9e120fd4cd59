"""Which hosts are named, and which addresses may be connected to."""

from __future__ import annotations

import pytest
from hagane.system.errors import ConfigurationError
from hagane.toolbox.reachable import ReachableHosts

HOSTS = ReachableHosts.of(
    ["Example.com", "*.wiki.example", "odd.example:8443", "10.1.2.3:8080", "[fd00::5]:8080",
     "172.16.0.0/16"]
)  # fmt: skip


@pytest.mark.parametrize(
    ("host", "port", "named"),
    [
        ("example.com", 443, True),
        ("EXAMPLE.com.", 80, True),
        ("example.com", 8080, False),
        ("sub.example.com", 443, False),
        ("ja.wiki.example", 443, True),
        ("wiki.example", 443, False),
        ("evilwiki.example", 443, False),
        ("odd.example", 8443, True),
        ("odd.example", 443, False),
        ("10.1.2.3", 8080, True),
        ("10.1.2.3", 80, False),
        ("fd00::5", 8080, True),
        ("172.16.0.1", 80, False),
        ("localhost", 80, False),
    ],
)
def test_hosts(host, port, named):
    assert HOSTS.names(host, port) is named


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07::1", True),
        ("10.1.2.3", True),
        ("10.1.2.4", False),
        ("172.16.9.9", True),
        ("172.17.0.1", False),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("192.168.1.1", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00::5", True),
        ("fd00::6", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:93.184.215.14", True),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("no address", False),
    ],
)
def test_addresses(address, allowed):
    assert HOSTS.allows(address) is allowed


@pytest.mark.parametrize("entry", ["10.1.0.0/99", "example.com:http", "example.com:0", "a/b"])
def test_what_cannot_be_read_is_named(entry):
    with pytest.raises(ConfigurationError, match="fetch_hosts has"):
        ReachableHosts.of([entry])
