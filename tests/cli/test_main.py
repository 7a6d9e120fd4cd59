"""The command line as a user meets it."""

from __future__ import annotations

import pytest

from tests.support.server import hagane


def test_serve_help_explains_every_setting():
    from hagane.system.settings import Settings

    shown = hagane("serve", "--help").stdout
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in shown
        assert field.description.split()[0] in shown


@pytest.mark.parametrize(
    ("arguments", "environment", "part"),
    [
        (["serve", "--port", "99999"], {}, "port"),
        (["serve"], {"HAGANE_QUANTIZE": "int3"}, "quantize"),
        (["serve"], {"HAGANE_MODLE": "x"}, "HAGANE_MODLE"),
        (["serve"], {"HAGANE_CONFIG": "/nonexistent.toml"}, "/nonexistent.toml"),
        (["serve", "--model", "no-such-model"], {}, "no-such-model"),
        (["serve", "--device", "tpu"], {}, "tpu"),
        (["pretrain", "/nonexistent.toml"], {}, "/nonexistent.toml"),
    ],
)
def test_mistakes_are_one_line_and_status_2(arguments, environment, part):
    result = hagane(*arguments, **environment)
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("hagane: ")
    assert part in line


def test_toml_environment_and_flags_in_order_of_precedence(tmp_path, monkeypatch):
    from hagane.system.settings import Settings

    file = tmp_path / "hagane.toml"
    file.write_text('port = 1\nhost = "127.0.0.2"\nmax_sequences = 3\n')
    monkeypatch.setenv("HAGANE_CONFIG", str(file))
    monkeypatch.setenv("HAGANE_PORT", "2")
    monkeypatch.setenv("HAGANE_HOST", "127.0.0.3")
    settings = Settings(
        _cli_parse_args=["--port", "3", "--kv-cache-memory", "2GiB", "--group-size", "32"]
    )
    assert (settings.port, settings.host, settings.max_sequences) == (3, "127.0.0.3", 3)
    assert int(settings.kv_cache_memory) == 2 << 30
    assert settings.group_size == 32


def test_chat_streams_from_a_running_server(server):
    result = hagane(
        "chat", "--url", server.url, "--temperature", "0", text="Hello\n/reset\n/quit\n"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_chat_without_a_server_says_so():
    result = hagane("chat", "--url", "http://127.0.0.1:9")
    assert result.returncode == 2
    assert "hagane serve" in result.stderr
