"""Pages of the hosts that the operator names, as text.

Every request, redirects among them, is to a named host, and connects to an address that was
checked: nothing resolves the name a second time.
"""

from __future__ import annotations

import asyncio
import codecs
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

from hagane.system.sandbox import Sandbox, SandboxError
from hagane.toolbox.reachable import ReachableHosts
from hagane.toolbox.tool import Tool, ToolError, shortened, text_argument

if TYPE_CHECKING:
    import httpx

MOST_BYTES = 1 << 20
SECONDS = 15.0
MOST_REDIRECTS = 5
_LONGEST_URL = 2048
_PORTS = {"http": 80, "https": 443}
_READABLE = ("text/", "application/json", "application/xml", "application/xhtml+xml")
_SKIPPED = {"script", "style", "noscript", "template", "svg", "head", "nav", "footer"}
# Codecs of Python for other things, some of which take time that grows with the square.
_NO_CHARSETS = {"punycode", "idna", "undefined", "unicode-escape", "raw-unicode-escape"}
_MOST_OPEN = 256
_READERS = 2
_LINES = {"p", "div", "br", "li", "tr", "h1", "h2", "h3", "h4", "h5", "h6", "pre", "section"}


async def fetch(url: str, hosts: ReachableHosts) -> str:
    """The text of the page at `url`. Raises ToolError."""
    import httpx  # megabytes that few servers need

    headers = {"User-Agent": "hagane", "Accept": "text/*, application/json;q=0.9",
               "Accept-Encoding": "identity"}  # fmt: skip
    try:
        async with (
            asyncio.timeout(SECONDS),
            # Without a proxy, which would resolve names by itself.
            httpx.AsyncClient(headers=headers, timeout=SECONDS, trust_env=False) as client,
        ):
            return await _follow(client, url, hosts)
    except TimeoutError:
        raise ToolError(f"{url} took longer than {SECONDS:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        # The last two are about addresses that the page leads to.
        raise ToolError(f"{url} cannot be fetched: {error or type(error).__name__}") from None


async def _follow(client: httpx.AsyncClient, url: str, hosts: ReachableHosts) -> str:
    for _ in range(MOST_REDIRECTS + 1):
        response = await client.send(await _request(client, url, hosts), stream=True)
        try:
            if not response.has_redirect_location:
                return await _text(response)
            location = response.headers["location"]
        finally:
            await response.aclose()
        url = str(_parsed(url).join(location))
    raise ToolError(f"more than {MOST_REDIRECTS} redirects")


async def _request(client: httpx.AsyncClient, url: str, hosts: ReachableHosts) -> httpx.Request:
    """A request to a checked address of the host. Raises ToolError."""
    parsed = _parsed(url)
    port = parsed.port or _PORTS[parsed.scheme]
    if not hosts.names(parsed.host, port):
        raise ToolError(f"{parsed.host}:{port} is not one of the hosts that may be fetched from")
    address = await _resolve(parsed.host, port, hosts)
    request = client.build_request("GET", parsed.copy_with(host=address))
    request.headers["Host"] = parsed.netloc.decode("ascii")
    request.extensions["sni_hostname"] = parsed.raw_host.decode("ascii")
    return request


def _parsed(url: str) -> httpx.URL:
    import httpx

    if len(url) > _LONGEST_URL:
        raise ToolError(f"the address is longer than {_LONGEST_URL} characters")
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        raise ToolError(f"{url!r} is no address") from None
    if parsed.scheme not in _PORTS or not parsed.host or parsed.userinfo:
        raise ToolError(f"{url!r} is not of the form https://HOST/PATH")
    return parsed


async def _resolve(host: str, port: int, hosts: ReachableHosts) -> str:
    """An address of the host; one that is not allowed rules the host out."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise ToolError(f"the host {host} is not known") from None
    addresses = [str(place[0]) for *_, place in found]
    if not addresses or not all(map(hosts.allows, addresses)):
        raise ToolError(f"the host {host} has an address that may not be connected to")
    return addresses[0]


async def _text(response: httpx.Response) -> str:
    kind = response.headers.get("content-type", "text/plain").partition(";")[0].strip().lower()
    if not kind.startswith(_READABLE):
        raise ToolError(f"the page is {kind}, not text")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise ToolError("the page is compressed, although that was not asked for")
    content = bytearray()
    async for piece in response.aiter_raw():
        content += piece
        if len(content) > MOST_BYTES:
            break
    is_html = kind in ("text/html", "application/xhtml+xml")
    charset = response.charset_encoding or "utf-8"
    reading = partial(_read, bytes(content[:MOST_BYTES]), charset, is_html)
    text = await asyncio.get_running_loop().run_in_executor(_readers(), reading)
    if response.is_error:
        raise ToolError(f"HTTP {response.status_code}: {text[:500]}")
    return shortened(text)


def _read(content: bytes, charset: str, is_html: bool) -> str:
    """The text of a page; in UTF-8 where `charset` is none that pages are written in."""
    try:
        if codecs.lookup(charset).name in _NO_CHARSETS:
            charset = "utf-8"
        text = content.decode(charset, "replace")
    except (LookupError, ValueError):
        text = content.decode("utf-8", "replace")
    if not is_html:
        return text
    try:
        # Python's reader takes time that grows with the square of some pages.
        return str(_sandbox().call(f"{__name__}:{text_of_html.__name__}", text))
    except SandboxError as error:
        raise ToolError(f"the page cannot be read: {error}") from None


@cache
def _readers() -> ThreadPoolExecutor:
    # Of its own: pages that take long keep nothing else waiting.
    return ThreadPoolExecutor(_READERS, "pages")


@cache
def _sandbox() -> Sandbox:
    return Sandbox(processes=_READERS)


def text_of_html(html: str) -> str:
    """What is to be read of a page, a line for each paragraph."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    lines = (" ".join(line.split()) for line in "".join(reader.pieces).splitlines())
    return "\n".join(line for line in lines if line)


class _Reader(HTMLParser):
    """Collects the text outside of what no reader sees; the title comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self._skipped: list[str] = []
        self._title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        self._title = tag == "title"
        # Deeper ones end with those around them: each end looks through all that are open.
        if tag in _SKIPPED and len(self._skipped) < _MOST_OPEN:
            self._skipped.append(tag)
        if tag in _LINES:
            self.pieces.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self._title = False
        if tag in self._skipped:
            # What was left open within ends with it.
            del self._skipped[self._skipped.index(tag) :]
        if tag in _LINES or tag == "title":
            self.pieces.append("\n")

    def handle_data(self, data: str) -> None:
        if self._title or not self._skipped:
            self.pieces.append(data)


def fetch_tool(hosts: ReachableHosts) -> Tool:
    """The tool, whose description says what may be fetched."""
    named = ", ".join(name for name, _ in hosts.hosts)

    async def run(arguments: dict[str, Any]) -> str:
        return await fetch(text_argument(arguments, "url"), hosts)

    return Tool(
        "fetch",
        f"Reads a web page and returns its text. Only pages of these hosts: {named}.",
        {
            "type": "object",
            "properties": {"url": {"type": "string", "description": "address of the page"}},
            "required": ["url"],
            "additionalProperties": False,
        },
        run,
    )
