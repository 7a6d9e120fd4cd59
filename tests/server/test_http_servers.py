"""How the server ends: readiness first, then streams, then the process and its engine."""

from __future__ import annotations

import json
import signal
import threading
import time

import httpx
import psutil
import pytest

from tests.support.server import Server, start_server

LONG = {
    "model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "stream": True,
    "ignore_eos": True, "temperature": 0,
}  # fmt: skip


@pytest.fixture
def launch(tiny_model_dir, tmp_path):
    running: list[Server] = []

    def start(*flags: str) -> Server:
        server = start_server(
            tiny_model_dir, tmp_path / "log", "--served-model-name", "tiny", *flags
        )
        server.wait_ready()
        running.append(server)
        return server

    yield start
    for server in running:
        if server.process.poll() is None:
            server.process.kill()


class Stream(threading.Thread):
    """Reads one streamed answer; `begun` is set at its first event."""

    def __init__(self, server: Server, tokens: int) -> None:
        super().__init__()
        self.server, self.tokens = server, tokens
        self.begun = threading.Event()
        self.events: list[str] = []
        self.start()
        assert self.begun.wait(20)

    def run(self) -> None:
        body = LONG | {"max_tokens": self.tokens}
        url = f"{self.server.url}/v1/chat/completions"
        with httpx.stream("POST", url, json=body, timeout=60) as response:
            for line in response.iter_lines():
                if line.startswith("data: "):
                    self.events.append(line[6:])
                    self.begun.set()


def not_ready(server: Server) -> str:
    """The status of the server once it is not ready."""
    deadline = time.monotonic() + 10
    while (ready := httpx.get(f"{server.url}/health/ready")).status_code == 200:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert ready.status_code == 503
    return ready.json()["status"]


def test_control_c_lets_streams_finish_refuses_new_requests_and_shows_no_traceback(launch):
    server = launch("--shutdown-grace", "30")
    engine = psutil.Process(server.wait_ready()["engine_pid"])
    stream = Stream(server, 450)
    engine.suspend()  # so that the stream surely outlasts what follows
    server.process.send_signal(signal.SIGINT)
    assert not_ready(server) == "draining"
    refused = httpx.post(f"{server.url}/v1/chat/completions", json=LONG | {"stream": False})
    assert refused.status_code == 503
    assert "retry-after" in refused.headers
    engine.resume()
    stream.join(30)
    assert stream.events[-1] == "[DONE]"
    assert json.loads(stream.events[-2])["choices"][0]["finish_reason"] == "length"
    assert server.process.wait(20) == 0
    assert not engine.is_running()
    assert "Traceback" not in server.log.read_text()


def test_a_terminal_that_closes_ends_the_server_as_control_c_does(launch):
    """The signal reaches server and engine; the stream that runs is finished all the same."""
    server = launch("--shutdown-grace", "30")
    engine = psutil.Process(server.wait_ready()["engine_pid"])
    stream = Stream(server, 450)
    for process in (engine, server.process):
        process.send_signal(signal.SIGHUP)
    stream.join(30)
    assert stream.events[-1] == "[DONE]"
    server.process.wait(20)
    assert not engine.is_running()


@pytest.mark.parametrize("second_signal", [False, True])
def test_streams_that_outlast_the_grace_end_with_an_error_event(launch, second_signal):
    server = launch("--shutdown-grace", "60" if second_signal else "0.1")
    engine = psutil.Process(server.wait_ready()["engine_pid"])
    engine.suspend()  # a stream that would never end
    try:
        body = LONG | {"max_tokens": 400}
        failures = []

        def ask() -> None:
            answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
            failures.append(answer)

        thread = threading.Thread(target=ask)
        thread.start()
        time.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        if second_signal:
            time.sleep(0.3)
            server.process.send_signal(signal.SIGTERM)
        thread.join(20)
    finally:
        engine.resume()
    assert failures[0].status_code == 503
    assert "shut down" in failures[0].json()["error"]["message"]
    server.process.wait(20)
    assert not engine.is_running()
