"""Starts engine processes. It imports little: a server launches its engine before all else.

The engine imports torch and loads its weights while the API is imported and put together.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from dataclasses import dataclass

from hagane.pool.channel import encode
from hagane.pool.messages import EngineConfig


@dataclass(frozen=True)
class Launched:
    """An engine process that has its config, on the other end of `connection`.

    It ends by itself when `connection` is closed.
    """

    process: subprocess.Popen[bytes]
    connection: socket.socket


def launch(config: EngineConfig) -> Launched:
    """Start an engine and send it `config`, which the socket's buffer holds until it is read."""
    ours, theirs = socket.socketpair()
    with theirs:
        ours.sendall(encode(config))
        descriptor = theirs.fileno()
        command = [sys.executable, "-m", "hagane.engine", str(descriptor)]
        process = subprocess.Popen(command, pass_fds=[descriptor])  # noqa: S603 - of our own
    return Launched(process, ours)
