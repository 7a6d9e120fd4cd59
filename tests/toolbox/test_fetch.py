"""Fetching from a real server on loopback, which is a private address that must be named."""

from __future__ import annotations

import contextlib
import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hagane.toolbox import fetch as module
from hagane.toolbox.fetch import _Reader, fetch, fetch_tool, text_of_html
from hagane.toolbox.reachable import ReachableHosts
from hagane.toolbox.tool import ToolError

PAGE = "<html><head><title>A page</title><script>no()</script></head><body><nav>no</nav>"
PAGE += "<h1>Heading</h1><p>One <b>two</b> &amp; 三</p><style>no</style><ul><li>a<li>b</ul></body>"


class Pages(BaseHTTPRequestHandler):
    """By path: a page, and everything that a hostile server would try."""

    def do_GET(self):
        port = self.server.server_address[1]
        moved = {
            "/moved": "/page",
            "/metadata": "http://169.254.169.254/latest/meta-data/",
            "/port": "http://127.0.0.1:1/",
            "/name": f"http://localhost:{port}/page",
            "/file": "file:///etc/passwd",
            "/loop": "/loop",
            "/nowhere": "http:page",
        }
        self.server.seen.append((self.path, self.headers["Host"]))
        kind, body = "text/html; charset=utf-8", PAGE.encode()
        if self.path == "/large":
            kind, body = "text/plain", b"x" * (3 << 20)
        elif self.path.startswith("/in/"):
            kind, body = f"text/plain; charset={self.path[4:]}", rb"bcher-kva \x41"
        elif self.path == "/endless":
            body = b"<a " * 300_000
        elif self.path == "/picture":
            kind = "image/png"
        elif self.path == "/bomb":
            body = gzip.compress(b"x" * (8 << 20))
        found = 404 if self.path == "/missing" else 302 if self.path in moved else 200
        self.send_response(found)
        self.send_header("Content-Type", kind)
        if self.path in moved:
            self.send_header("Location", moved[self.path])
        if self.path == "/bomb":
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as running:
        running.seen = []
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def port(server):
    server.seen.clear()
    return server.server_address[1]


@pytest.mark.parametrize("path", ["page", "moved"])
async def test_a_page_is_read_as_text(server, port, path):
    hosts = ReachableHosts.of([f"127.0.0.1:{port}"])
    tool = fetch_tool(hosts)
    assert "127.0.0.1" in tool.description
    text = await tool.run({"url": f"http://127.0.0.1:{port}/{path}"})
    assert text == "A page\nHeading\nOne two & 三\na\nb"
    assert server.seen[-1] == ("/page", f"127.0.0.1:{port}")


async def test_a_named_host_keeps_its_name_at_the_checked_address(server, port):
    hosts = ReachableHosts.of([f"localhost:{port}", "127.0.0.0/8", "::1/128"])
    assert "Heading" in await fetch(f"http://localhost:{port}/page", hosts)
    assert server.seen == [("/page", f"localhost:{port}")]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("metadata", "169.254.169.254:80 is not one of the hosts"),
        ("port", "127.0.0.1:1 is not one of the hosts"),
        ("name", "localhost:.* is not one of the hosts"),
        ("file", "not of the form"),
        ("loop", "more than 5 redirects"),
        ("nowhere", "cannot be fetched"),
        ("picture", "the page is image/png"),
        ("bomb", "compressed"),
        ("missing", "HTTP 404"),
    ],
)
async def test_what_a_server_may_not_lead_to(port, path, reason):
    hosts = ReachableHosts.of([f"127.0.0.1:{port}"])
    with pytest.raises(ToolError, match=reason):
        await fetch(f"http://127.0.0.1:{port}/{path}", hosts)


async def test_a_named_host_with_a_private_address_is_not_connected_to(server, port):
    with pytest.raises(ToolError, match="may not be connected to"):
        await fetch(f"http://localhost:{port}/page", ReachableHosts.of([f"localhost:{port}"]))
    assert server.seen == []


@pytest.mark.parametrize(
    "url", ["ftp://127.0.0.1/", "http://a:b@127.0.0.1/", "no address", "http://", "x" * 3000]
)
async def test_what_is_no_address(url):
    with pytest.raises(ToolError):
        await fetch(url, ReachableHosts.of(["127.0.0.1"]))


async def test_a_page_that_takes_too_long_to_read_is_given_up(port):
    with pytest.raises(ToolError, match="processor time"):
        await fetch(f"http://127.0.0.1:{port}/endless", ReachableHosts.of([f"127.0.0.1:{port}"]))


async def test_large_pages_are_cut(port):
    text = await fetch(f"http://127.0.0.1:{port}/large", ReachableHosts.of([f"127.0.0.1:{port}"]))
    assert text.startswith("x" * 1000)
    assert text.endswith(f"[cut after 20,000 of {module.MOST_BYTES:,} characters]")


@pytest.mark.parametrize(
    "charset",
    ["latin-1", "nonsense", "punycode", "idna", "undefined", "unicode_escape", "base64"],
)
async def test_a_charset_is_one_that_pages_are_written_in(port, charset):
    hosts = ReachableHosts.of([f"127.0.0.1:{port}"])
    assert await fetch(f"http://127.0.0.1:{port}/in/{charset}", hosts) == r"bcher-kva \x41"


async def test_nobody_there(port):
    with pytest.raises(ToolError, match="cannot be fetched"):
        await fetch("http://127.0.0.1:1/", ReachableHosts.of(["127.0.0.1:1"]))


def test_html_that_is_never_closed():
    assert text_of_html("<p>a<script>no") == "a"
    assert text_of_html("<svg><p>no</svg>b<br>c") == "b\nc"


def test_what_is_open_is_counted_up_to_a_bound():
    reader = _Reader()
    reader.feed("<svg>" * 5_000)
    assert len(reader._skipped) < 1_000, "each end tag looks through them"
    reader.feed("no</svg>yes")
    assert "".join(reader.pieces) == "yes"
