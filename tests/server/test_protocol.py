"""A real server against peers that never send a whole request, or a strange one."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import httpx
import psutil
import pytest
import uvicorn
from hagane.server.pacing import Pacer
from hagane.server.protocol import BoundedProtocol, ConnectionBounds
from hagane.system.settings import Settings

from tests.support.server import Server, start_server, stop_server

CONNECTIONS = 24
FLAGS = (
    "--max-connections", str(CONNECTIONS), "--max-header-bytes", "8KiB", "--header-timeout", "0.8",
    "--body-timeout", "0.8", "--max-body-bytes", "1MiB", "--served-model-name", "tiny",
)  # fmt: skip


@pytest.fixture(scope="module")
def bounded(tiny_model_dir, tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("bounded")
    server = start_server(
        tiny_model_dir, folder / "log", *FLAGS, HAGANE_API_KEYS="key", HAGANE_ADMIN_KEY="admin",
        HAGANE_DATA_DIR=str(folder / "data"),
    )  # fmt: skip
    server.wait_ready()
    yield server
    stop_server(server)


def connect(server: Server, timeout: float = 10) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=timeout)


def rest(connection: socket.socket) -> bytes:
    """Everything until the server closes."""
    pieces = []
    try:
        while piece := connection.recv(65536):
            pieces.append(piece)
    except ConnectionResetError:
        pass
    return b"".join(pieces)


def send(server: Server, raw: bytes) -> list[int]:
    """The statuses of the answers to `raw`, in the order in which they come."""
    with connect(server) as connection:
        connection.sendall(raw)
        return statuses(rest(connection))


def statuses(answer: bytes) -> list[int]:
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


def hang_ups(metrics: str) -> float:
    found = re.search(r'route="/v1/completions",status="499"} (\S+)', metrics)
    return float(found[1]) if found else 0.0


def live(server: Server) -> int:
    return httpx.get(f"{server.url}/health/live", timeout=5).status_code


HEAD = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
KEY = b"Authorization: Bearer key\r\n"


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (HEAD + b"X: " + b"a" * 9000 + b"\r\n\r\n", 431),
        (HEAD + b"".join(b"H%d: a\r\n" % i for i in range(2000)) + b"\r\n", 431),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 431),
        (HEAD + b"X: " + b"a" * 3_000_000, 431),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (HEAD + b"Host: other\r\n\r\n", 400),
        (HEAD + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (HEAD + b"Content-Length: +1\r\n\r\n", 400),
        (HEAD + b"Content-Length: " + b"0" * 5000 + b"1\r\n\r\n", 400),
        (HEAD + b"Transfer-Encoding: xchunked\r\n\r\n", 400),
        (HEAD + b"Transfer-Encoding: chunked, gzip\r\n\r\n", 400),
        (HEAD.replace(b"\r\n", b"\n") + b"\n", 400),
        (HEAD + b" folded: a\r\n\r\n", 400),
        (HEAD + b"Na me: a\r\n\r\n", 400),
        (HEAD + b"X: a\0b\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: localhost\r\n\r\n", 505),
        (b"CONNECT evil:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (HEAD * 2, 400),
    ],
    ids=range(20),
)
def test_strange_heads_are_refused_in_the_shape_of_errors(bounded, raw, status):
    with connect(bounded) as connection:
        connection.sendall(raw)
        answer = rest(connection)
    assert statuses(answer) == [status]
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    assert live(bounded) == 200


def test_absolute_uris_name_the_host(bounded):
    own = b"GET http://localhost/health/live HTTP/1.1\r\nHost: evil\r\nConnection: close\r\n\r\n"
    assert send(bounded, own) == [200]
    other = b"GET http://evil/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert send(bounded, other) == [403]
    old = b"GET /health/live HTTP/1.0\r\n\r\n"
    assert send(bounded, old) == [200]


def test_silent_connections_and_half_heads_are_closed(bounded):
    started = time.monotonic()
    peers = [connect(bounded) for _ in range(3)]
    peers[1].sendall(HEAD)
    drip = threading.Event()

    def trickle() -> None:
        with peers[2]:
            try:
                for byte in b"\r\n" * 100:
                    peers[2].sendall(bytes([byte]))
                    time.sleep(0.1)
            except OSError:
                drip.set()

    thread = threading.Thread(target=trickle)
    thread.start()
    assert rest(peers[0]) == b""
    assert statuses(rest(peers[1])) == [408]
    thread.join(8)
    assert drip.is_set()
    assert time.monotonic() - started < 6
    for peer in peers[:2]:
        peer.close()


def test_silent_connections_do_not_lock_others_out(bounded):
    peers = []
    try:
        for _ in range(6 * CONNECTIONS):
            peers.append(connect(bounded))
            if len(peers) % CONNECTIONS == 0:
                assert live(bounded) == 200
        open_now = len(psutil.Process(bounded.process.pid).net_connections())
        assert open_now <= CONNECTIONS + 5
    finally:
        for peer in peers:
            peer.close()


def test_requests_on_every_connection_leave_room_for_none(bounded):
    body = b'{"model": "tiny", "prompt": "a", "max_tokens": 400, "ignore_eos": true, "n": 16}'
    whole = POST + KEY + b"Content-Length: %d\r\n\r\n" % len(body) + body
    peers = [connect(bounded) for _ in range(CONNECTIONS)]
    try:
        for peer in peers:
            peer.sendall(whole)
        time.sleep(0.3)
        with connect(bounded) as late:
            answer = rest(late)
        assert statuses(answer) == [503]
        assert b"retry-after" in answer
    finally:
        for peer in peers:
            peer.close()


@pytest.mark.parametrize("length", [b"Content-Length: 900000", b"Transfer-Encoding: chunked"])
def test_keys_come_before_bodies(bounded, length):
    """Nobody without a key is waited for, and what was not read is not taken for a request."""
    raw = POST + length + b"\r\n\r\n"
    with connect(bounded) as connection:
        started = time.monotonic()
        connection.sendall(raw)
        answer = connection.recv(65536)
        assert statuses(answer) == [401]
        assert time.monotonic() - started < 0.6
        assert b"connection: close" in answer.lower()
        connection.sendall(HEAD + b"\r\n")
        connection.shutdown(socket.SHUT_WR)  # the server waits for no more of the body
        assert statuses(rest(connection)) == []


def test_a_client_that_waits_to_be_asked_is_not_asked_without_a_key(bounded):
    raw = POST + b"Content-Length: 9\r\nExpect: 100-continue\r\n"
    with connect(bounded) as connection:
        connection.sendall(raw + b"\r\n")
        assert statuses(connection.recv(65536)) == [401]
    with connect(bounded) as connection:
        connection.sendall(raw + KEY + b"\r\n")
        assert statuses(connection.recv(65536)) == [100]
        connection.sendall(b'{"a": 1} ')
        assert statuses(connection.recv(65536)) == [400]


def test_a_small_unread_body_costs_no_connection(bounded):
    raw = POST + b"Content-Length: 2\r\n\r\n{}" + HEAD + b"Connection: close\r\n\r\n"
    assert send(bounded, raw) == [401, 200]


def test_bodies_that_stall_or_trickle_are_given_up(bounded):
    begun = POST + KEY + b"Content-Length: 900000\r\n\r\n"
    with connect(bounded) as stalled, connect(bounded) as trickling:
        stalled.sendall(begun + b"{")
        trickling.sendall(begun)
        started = time.monotonic()
        answers = []
        threading.Thread(target=lambda: answers.append(rest(trickling)), daemon=True).start()
        for _ in range(40):
            if answers or time.monotonic() > started + 6:
                break
            try:
                trickling.sendall(b" " * 10)
            except OSError:
                break
            time.sleep(0.1)
        answer = rest(stalled)
    assert statuses(answer) == [408]
    assert b"body_timeout" in answer
    assert time.monotonic() - started < 6


def stalled_upload(sent: int, *, chunked: bool) -> bytes:
    """The head of an upload and the first `sent` bytes of its form."""
    part = b'--B\r\nContent-Disposition: form-data; name="%b"\r\n\r\n'
    form = part % b"purpose" + b"fine-tune\r\n" + part % b'file"; filename="a.jsonl'
    form = (form + b"x" * 5000)[:sent]
    head = POST.replace(b"/v1/completions", b"/v1/files").replace(
        b"application/json", b"multipart/form-data; boundary=B"
    )
    head += b"Authorization: Bearer admin\r\n"
    if chunked:
        body = b"%x\r\n%b\r\n" % (len(form), form) if form else b""
        return head + b"Transfer-Encoding: chunked\r\n\r\n" + body
    return head + b"Content-Length: 900000\r\n\r\n" + form


def test_uploads_that_stall_are_given_up_and_leave_nothing(bounded):
    """In the head, in the purpose, in the head of the file, and in its content; all at a time."""
    with ExitStack() as stack:
        connections = {}
        for stalled in itertools.product((0, 60, 300, 5000), (False, True)):
            connections[stalled] = stack.enter_context(connect(bounded))
            connections[stalled].sendall(stalled_upload(stalled[0], chunked=stalled[1]))
        for stalled, connection in connections.items():
            answer = rest(connection)
            assert statuses(answer) == [408], stalled
            assert b"body_timeout" in answer, stalled
    assert list((bounded.log.parent / "data" / "files").iterdir()) == []


def test_bodies_are_refused_by_their_announced_length(bounded):
    """Before they are sent, and with an answer that a client which goes on sending can read."""
    headers = {"Authorization": "Bearer key", "Content-Type": "application/json"}
    url = f"{bounded.url}/v1/completions"
    big = b" " * (3 << 20)
    assert httpx.post(url, content=big, headers=headers).status_code == 413
    pieces = (big[i : i + 65536] for i in range(0, len(big), 65536))
    assert httpx.post(url, content=pieces, headers=headers).status_code == 413


def test_compressed_bodies_are_not_unpacked(bounded):
    headers = {"Authorization": "Bearer key", "Content-Encoding": "gzip"}
    url = f"{bounded.url}/v1/completions"
    answer = httpx.post(url, content=b"\x1f\x8b\x08", headers=headers)
    assert answer.status_code == 400


def test_bodies_in_tiny_chunks_and_trailers_without_end_are_refused(bounded):
    raw = POST + KEY + b"Transfer-Encoding: chunked\r\n\r\n"
    assert send(bounded, raw + b"1\r\n \r\n" * 5000) == [400]
    assert send(bounded, raw + b"1;" + b"a" * 5_000_000) == [400]
    extended = b"20;" + b"a" * 9000 + b"\r\n" + b" " * 32 + b"\r\n"
    assert send(bounded, raw + extended * 500) == [400]
    trailers = b"0\r\n" + b"".join(b"T%d: a\r\n" % i for i in range(3000))
    assert send(bounded, raw + trailers) == [431]


def test_more_requests_than_answers_are_bounded(bounded):
    assert send(bounded, (HEAD + b"\r\n") * 500) == [400]
    assert send(bounded, (HEAD + b"\r\n") * 8 + HEAD + b"Connection: close\r\n\r\n") == [200] * 9


def test_upgrades_are_not_made_and_bodies_behind_them_are_read(bounded):
    """Java's client offers HTTP/2 with every first request."""
    body = b'{"tokens": [5]}'
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n"
    raw = POST.replace(b"/v1/completions", b"/detokenize") + KEY + offer
    raw += b"Content-Length: %d\r\n\r\n" % len(body) + body
    assert send(bounded, raw + HEAD + b"Connection: close\r\n\r\n") == [200, 200]
    websocket = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: YQ==\r\n\r\n"
    assert send(bounded, HEAD + websocket + HEAD + b"Connection: close\r\n\r\n") == [200, 200]


def test_a_hang_up_in_a_body_is_the_client_s(bounded):
    before = httpx.get(f"{bounded.url}/metrics").text
    for path in ("/v1/completions", "/nothing"):
        with connect(bounded) as connection:
            raw = POST.replace(b"/v1/completions", path.encode()) + KEY
            connection.sendall(raw + b"Content-Length: 9000\r\n\r\n{")
            time.sleep(0.1)
    time.sleep(0.3)
    after = httpx.get(f"{bounded.url}/metrics").text
    assert hang_ups(after) == hang_ups(before) + 1
    assert not re.search(r'status="500"', after)
    assert "Traceback" not in bounded.log.read_text()


async def test_a_reader_that_does_not_read_is_cut_off():
    ended = asyncio.Event()

    async def endless(scope, receive, send):
        headers = [(b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        piece = {"type": "http.response.body", "body": b"a" * 65536, "more_body": True}
        while server.server_state.connections:
            await send(piece)
            await asyncio.sleep(0)
        ended.set()

    bounds = ConnectionBounds(connections=4, header_bytes=8192, header_seconds=5, write_seconds=0.3)
    config = uvicorn.Config(
        endless,
        http=partial(BoundedProtocol, bounds=bounds, pacer=Pacer()),
        log_config=None,
        lifespan="off",
    )
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    serving = asyncio.create_task(server.serve([listening]))
    _, writer = await asyncio.open_connection(*listening.getsockname(), limit=1024)
    writer.write(HEAD + b"\r\n")
    await asyncio.wait_for(ended.wait(), 10)
    writer.close()
    server.should_exit = True
    await serving


def test_the_default_leaves_half_of_the_descriptors():
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    bounds = ConnectionBounds.of(Settings(_cli_parse_args=False))
    assert bounds.connections == min(512, descriptors // 2)
    assert ConnectionBounds.of(Settings(_cli_parse_args=False, max_connections=9)).connections == 9
