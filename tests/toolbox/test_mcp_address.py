"""Entries of `mcp_servers`, and the secrets that they name."""

from __future__ import annotations

import logging

import pytest
from hagane.system.errors import ConfigurationError
from hagane.toolbox.mcp_address import McpAddress


@pytest.mark.parametrize("entry", ["", "name", "=x", "a b=x", "name= "])
def test_entries_that_cannot_be_read(entry):
    with pytest.raises(ConfigurationError, match="mcp_servers has"):
        McpAddress.read(entry)


def test_addresses_and_commands():
    address = McpAddress.read("files=https://mcp.example/mcp?a=b")
    assert (address.is_command, address.target) == (False, "https://mcp.example/mcp?a=b")
    command = McpAddress.read("files=python -m server --flag=x bearer=env:X")
    assert command.target == "python -m server --flag=x bearer=env:X"
    assert command.secrets == ()


def test_headers_from_the_environment_and_from_files(monkeypatch, tmp_path):
    monkeypatch.setenv("NOTES_TOKEN", " abc\n")
    kept = tmp_path / "api key"
    kept.write_text("first\n")
    words = f"bearer=env:NOTES_TOKEN 'X-Api-Key=file:{kept}'"
    address = McpAddress.read(f"notes=https://mcp.example/mcp {words}")
    assert address.target == "https://mcp.example/mcp"
    assert address.headers() == {"Authorization": "Bearer abc", "X-Api-Key": "first"}
    quoted = "https://mcp.example/mcp?q='a'"
    assert McpAddress.read(f"notes={quoted} {words}").target == quoted
    kept.write_text("second\n")
    assert address.headers()["X-Api-Key"] == "second"
    assert "abc" not in repr(address)


@pytest.mark.parametrize(
    "word", ["bearer=s3cret", "s3cret", "a env:X", "X-Key=env:", "=env:X", "'s3cret"]
)
def test_a_secret_in_the_settings_is_refused_and_not_repeated(word):
    with pytest.raises(ConfigurationError, match="write bearer=env:NAME") as refused:
        McpAddress.read(f"notes=https://mcp.example/mcp {word}")
    assert "s3cret" not in str(refused.value)


def test_secrets_that_are_not_there(monkeypatch, tmp_path):
    monkeypatch.delenv("NOTES_TOKEN", raising=False)
    (tmp_path / "lines").write_text("one\ntwo\n")
    for place in ("env:NOTES_TOKEN", f"file:{tmp_path}/none", f"file:{tmp_path}/lines"):
        address = McpAddress.read(f"notes=https://mcp.example/mcp bearer={place}")
        with pytest.raises(ConfigurationError, match=place.partition(":")[2]):
            address.check()


def test_a_secret_that_goes_unencrypted_is_warned_of(monkeypatch, caplog):
    monkeypatch.setenv("NOTES_TOKEN", "abc")
    with caplog.at_level(logging.WARNING):
        for host in ("http://127.0.0.1:1", "https://mcp.example", "http://mcp.example"):
            McpAddress.read(f"notes={host}/mcp bearer=env:NOTES_TOKEN").check()
    assert [record.getMessage() for record in caplog.records] == [
        "MCP server notes: its secret goes over the network unencrypted"
    ]
