"""A port that is taken is reported with its remedy, before anything is loaded."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest
from hagane.server.listening import listen
from hagane.system.errors import ConfigurationError


def test_a_port_that_is_taken_names_the_setting_to_change():
    (first,) = listen("127.0.0.1", 0, "port")
    with first:
        first.listen()
        taken = first.getsockname()[1]
        with pytest.raises(ConfigurationError, match="--admin-port, HAGANE_ADMIN_PORT"):
            listen("127.0.0.1", taken, "admin_port")


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(ConfigurationError, match="name an address of this machine"):
        listen("192.0.2.1", 0, "port")


def test_a_server_says_so_in_one_line():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        command = [sys.executable, "-m", "hagane.cli", "serve", "--port", str(port)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode != 0
    assert f"port {port} of 127.0.0.1 is taken" in ended.stderr
    assert "Traceback" not in ended.stderr
