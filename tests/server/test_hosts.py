"""Names that a server goes by."""

from __future__ import annotations

import socket

import httpx
import pytest
from hagane.server.hosts import AllowedHosts
from hagane.system.settings import Settings


def hosts(**settings: str) -> AllowedHosts:
    return AllowedHosts.of(Settings(_cli_parse_args=False, **settings))


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost", True), ("LOCALHOST:8000", True), ("a.localhost", True), ("localhost.", True),
        ("127.0.0.1:8000", True), ("[::1]:8000", True), ("192.168.1.7", True), ("::1", False),
        ("evil.example", False), ("localhost.evil.example", False), ("127.0.0.1.nip.io", False),
        ("evil.example:80@localhost", False), ("", False), ("[evil]", False), ("0x7f.1", False),
    ],
)  # fmt: skip
def test_loopback_names_and_addresses_by_default(host, allowed):
    assert (host in hosts()) == allowed
    assert host in hosts(allowed_hosts="*")


def test_names_of_settings_and_machine():
    named = hosts(host="llm.lan", allowed_hosts="API.example.com, *.internal")
    for host in ("llm.lan", "api.example.com:443", "a.b.internal", socket.gethostname()):
        assert host in named
    for host in ("example.com", "internal", "xapi.example.com", "evilinternal"):
        assert host not in named


def test_a_rebound_name_reads_nothing(server):
    for path in (
        "/",
        "/metrics",
        "/v1/models",
        "/health/live",
        "/openapi.json",
        "/web/chat/app.js",
    ):
        answer = httpx.get(f"{server.url}{path}", headers={"Host": "evil.example"})
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "host_not_allowed"
        assert "allowed_hosts" in answer.json()["error"]["message"]
