"""A server of Amazon's S3 protocol on loopback that keeps nothing."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import httpx


def missing() -> str | None:
    """Why there is no such server here; None where there is."""
    if importlib.util.find_spec("s3fs") is None:
        return "needs s3fs: pip install 'hagane[s3]'"
    if importlib.util.find_spec("moto") is None:
        return "needs a local S3 server: pip install 'moto[server,s3]'"
    return None


class S3:
    """`variables` bring clients in any process to it; `bucket()` makes an empty one."""

    def __init__(self, endpoint: str) -> None:
        self.variables = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def bucket(self) -> str:
        import s3fs

        name = f"b{uuid.uuid4().hex[:12]}"
        s3fs.S3FileSystem(
            key="test", secret="test", endpoint_url=self.variables["AWS_ENDPOINT_URL"]
        ).mkdir(name)
        return name


@contextmanager
def running() -> Iterator[S3]:
    """The server, until the context ends; its variables are this process's meanwhile."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(command, stdout=quiet, stderr=quiet)
    s3 = S3(f"http://127.0.0.1:{port}")
    deadline = time.monotonic() + 30
    while True:
        try:
            httpx.get(s3.variables["AWS_ENDPOINT_URL"])
            break
        except httpx.TransportError:
            assert time.monotonic() < deadline and server.poll() is None
            time.sleep(0.05)
    before = {name: os.environ.get(name) for name in s3.variables}
    os.environ.update(s3.variables)
    try:
        yield s3
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        server.kill()
        server.wait()
