"""The text of documents over HTTP."""

from __future__ import annotations

import importlib.util

import httpx
import pytest

from tests.data.test_pdf import make_pdf


@pytest.fixture
def post(server):
    def send(content, kind="application/pdf"):
        headers = {"Content-Type": kind}
        url = f"{server.url}/v1/documents/text"
        return httpx.post(url, content=content, headers=headers, timeout=30)

    return send


def test_a_pdf(post):
    pytest.importorskip("pypdf")
    answer = post(make_pdf("Hello world"))
    assert answer.json() == {"object": "document.text", "text": "Hello world", "pages": 1, "of": 1}
    assert post(b"none").json()["error"]["code"] == "unreadable_document"


def test_refusals(post):
    assert post(b"text", "text/plain").json()["error"]["code"] == "invalid_content_type"
    if importlib.util.find_spec("pypdf") is None:
        refused = post(b"%PDF-")
        assert refused.status_code == 400
        assert "the extra 'pdf'" in refused.json()["error"]["message"]
