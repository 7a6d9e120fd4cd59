"""The files of the page as a client gets them."""

from __future__ import annotations

import gzip
import re

import httpx
import pytest
from hagane.api.hagane import web
from hagane.api.hagane.web import FOLDER
from starlette.testclient import TestClient

FILES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.*"))
NAMES = [name for name in FILES if not name.startswith("vendor/")]
"""Our own; what is from elsewhere lies in `vendor`, as it came."""
PAGES = {"/": "chat/index.html", "/admin": "admin/index.html"}


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server.url) as client:
        yield client


def test_every_file_is_served(client):
    for name in FILES:
        response = client.get(f"/web/{name}")
        assert response.content == (FOLDER / name).read_bytes()
    for path, name in PAGES.items():
        assert client.get(path).content == (FOLDER / name).read_bytes()


@pytest.mark.parametrize(
    "path", [*PAGES, "/web/chat/app.js", "/web/shared/base.css", "/web/shared/favicon.svg"]
)
def test_headers(client, path):
    headers = client.get(path).headers
    policy = dict(
        part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-cache"


def test_the_frame_of_diagrams_has_no_origin(client):
    headers = client.get("/web/diagram/index.html").headers
    policy = headers["content-security-policy"]
    assert "sandbox allow-scripts" in policy
    assert "allow-same-origin" not in policy
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src")
    assert "frame-ancestors 'self'" in policy
    assert headers["x-frame-options"] == "SAMEORIGIN"
    for name in ("diagram/frame.js", "vendor/mermaid/mermaid.tiny.js"):
        assert client.get(f"/web/{name}").headers["cross-origin-resource-policy"] == "cross-origin"
    assert client.get("/").headers["cross-origin-resource-policy"] == "same-origin"


def test_types(client):
    assert client.get("/").headers["content-type"] == "text/html; charset=utf-8"
    assert (
        client.get("/web/chat/app.js").headers["content-type"] == "text/javascript; charset=utf-8"
    )
    assert client.get("/web/shared/base.css").headers["content-type"] == "text/css; charset=utf-8"


def test_unchanged_files_are_not_sent_again(client):
    first = client.get("/web/chat/app.js")
    tag = first.headers["etag"]
    for given in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = client.get("/web/chat/app.js", headers={"If-None-Match": given})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    changed = client.get("/web/chat/app.js", headers={"If-None-Match": '"other"'})
    assert changed.status_code == 200


def test_head(client):
    response = client.head("/", headers={"Accept-Encoding": "identity"})
    assert response.status_code == 200
    assert response.content == b""
    assert int(response.headers["content-length"]) == (FOLDER / "chat/index.html").stat().st_size
    refused = client.post("/web/chat/app.js")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")


def test_texts_are_compressed_where_the_browser_reads_that(client):
    for name, expected in (("chat/app.js", "gzip"), ("shared/favicon.svg", None),
                           ("vendor/katex/fonts/KaTeX_Main-Bold.woff2", None)):  # fmt: skip
        plain = client.get(f"/web/{name}", headers={"Accept-Encoding": "identity"})
        small = client.get(f"/web/{name}", headers={"Accept-Encoding": "gzip, br"})
        assert "content-encoding" not in plain.headers
        assert small.headers.get("content-encoding") == expected
        assert small.content == plain.content
        assert small.headers["vary"] == plain.headers["vary"] == "Accept-Encoding"
        assert (small.headers["etag"] == plain.headers["etag"]) == (expected is None)
        assert (int(small.headers["content-length"]) < len(plain.content) / 2) == bool(expected)


def test_a_file_that_changes_is_sent_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(web, "FOLDER", tmp_path)
    (tmp_path / "a.js").write_text("1")
    client = TestClient(web.Pages())
    first = client.get("/a.js")
    (tmp_path / "a.js").write_text("22")
    again = client.get("/a.js", headers={"If-None-Match": first.headers["etag"]})
    assert (first.text, again.status_code, again.text) == ("1", 200, "22")


@pytest.mark.parametrize(
    "path",
    [
        "/web/../main.py",
        "/web/%2e%2e/main.py",
        "/web/..%2fmain.py",
        "/web/%2e%2e%2fapi%2fweb.py",
        "/web/..%5cmain.py",
        "/web//etc/passwd",
        "/web/%2fetc%2fpasswd",
        "/web/chat/app.js%00.html",
        "/web/",
        "/web/missing.js",
    ],
)
def test_nothing_else_is_served(server, path):
    # The raw request target: a client library would tidy the path up first.
    host, port = server.url.removeprefix("http://").split(":")
    transport = httpx.HTTPTransport()
    url = httpx.URL(scheme="http", host=host, port=int(port), raw_path=path.encode())
    response = transport.handle_request(httpx.Request("GET", url))
    assert response.status_code in (404, 307)
    assert b"import" not in response.read()
    transport.close()


def test_page_needs_nothing_from_elsewhere():
    for name in NAMES:
        text = (FOLDER / name).read_text(encoding="utf-8")
        text = text.replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"""(src|href|from|import|url)\s*[=(]?\s*["']?(https?:)?//""", text)
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)


def test_what_is_from_elsewhere_keeps_its_licence():
    for folder in (FOLDER / "vendor").iterdir():
        assert "Copyright" in (folder / "LICENSE").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", ["chat", "admin"])
def test_the_pages_are_small(page):
    """Below 300 kB on the wire, without what comes on demand: formulas and colours."""
    own = [name for name in NAMES if name.startswith((f"{page}/", "shared/"))]
    assert sum(len(gzip.compress((FOLDER / name).read_bytes())) for name in own) < 300_000


def test_html_has_nothing_inline():
    html = "".join((FOLDER / name).read_text(encoding="utf-8") for name in PAGES.values())
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|<script(?![^>]*\ssrc=)", html)


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith(".js")])
def test_modules_are_small_and_documented(name):
    lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
    assert len(lines) < 300
    for number, line in enumerate(lines):
        if re.match(r"export (async )?(function|class)", line):
            assert lines[number - 1].strip().endswith("*/"), f"{name}: no comment above {line!r}"


def vocabulary(name):
    """The English and the Japanese words of a file."""
    text = (FOLDER / name).read_text(encoding="utf-8")
    english, japanese = (
        dict(re.findall(r'^    (\w+): "(.*)",$', part, re.M)) for part in text.split("  ja: {")
    )
    return english, japanese


WORDS = [name for name in NAMES if re.search(r"/words[\w-]*\.js$", name)]


@pytest.mark.parametrize("name", ["shared/i18n.js", *WORDS])
def test_both_languages_say_the_same(name):
    english, japanese = vocabulary(name)
    assert english.keys() == japanese.keys()
    for key, value in english.items():
        assert set(re.findall(r"\{\w+\}", value)) == set(re.findall(r"\{\w+\}", japanese[key]))


@pytest.mark.parametrize("page", ["chat", "admin"])
def test_every_word_of_a_page_exists_and_is_used(page):
    common = vocabulary("shared/i18n.js")[0]
    parts = [vocabulary(name)[0] for name in WORDS if name.startswith(f"{page}/")]
    own = {word: said for part in parts for word, said in part.items()}
    assert len(own) == sum(map(len, parts)), "a word is in one file only"
    assert not common.keys() & own.keys()
    sources = [
        (FOLDER / name).read_text(encoding="utf-8")
        for name in NAMES
        if name.startswith((page, "shared")) and name not in WORDS
    ]
    text = "\n".join(sources)
    asked = set(re.findall(r'data-i18n[\w-]*="(\w+)"', text))
    asked |= set(re.findall(r'\b(?:t|button)\("(\w+)"', text))
    assert asked <= common.keys() | own.keys()
    # Menus name their words as keys of what each does.
    unused = [word for word in own if not re.search(rf'["\'.]{word}\b|\n +{word}: \(\) =>', text)]
    assert unused == []
