"""A model hub on loopback, as far as `huggingface_hub` needs one to download."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

COMMIT = "1" * 40


class Hub(http.server.ThreadingHTTPServer):
    """Serves `files`, bytes by "OWNER/NAME/PATH". `limit` cuts the next answers off."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.limit: int | None = None
        self.ranges: list[str] = []
        self.corrupt = False
        # Files wait while it is set.
        self.held = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if tree := re.fullmatch(r"/api/models/([^/]+/[^/?]+)/tree/\w+(\?.*)?", self.path):
            return self._tree(tree[1])
        if listing := re.fullmatch(r"/api/models/([^/]+/[^/?]+)(/revision/\w+)?(\?.*)?", self.path):
            return self._list(listing[1])
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/\w+/(.+)", self.path):
            return self._file(f"{found[1]}/{found[2]}")
        return self._answer(404, b"", {})

    def _list(self, repository: str) -> None:
        prefix = f"{repository}/"
        files = {n: data for n, data in self.server.files.items() if n.startswith(prefix)}
        siblings = [
            {"rfilename": name.removeprefix(prefix), "size": len(data), **_hashes(name, data)}
            for name, data in files.items()
        ]
        body = {"id": repository, "sha": COMMIT, "siblings": siblings}
        self._answer(200 if files else 404, json.dumps(body).encode(), {})

    def _tree(self, repository: str) -> None:
        entries = [
            {"type": "file", "path": name.removeprefix(f"{repository}/"), "size": len(data),
             "oid": "0" * 40}
            for name, data in self.server.files.items()
            if name.startswith(f"{repository}/")
        ]  # fmt: skip
        self._answer(200, json.dumps(entries).encode(), {})

    def _file(self, name: str) -> None:
        data = self.server.files.get(name)
        if data is None:
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        hashes = _hashes(name, data)
        etag = hashes["lfs"]["sha256"] if "lfs" in hashes else hashes["blobId"]
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'}
        start = 0
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start = int(wanted[1])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self.server.ranges.append(self.headers["Range"])
        while self.server.held and self.command == "GET":
            time.sleep(0.01)
        if self.server.corrupt and self.command == "GET":
            data = data[:-1] + bytes([data[-1] ^ 1])
        return self._answer(206 if start else 200, data[start:], headers)

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        limit = self.server.limit
        self.wfile.write(body if limit is None else body[:limit])
        if limit is not None and len(body) > limit:
            self.wfile.flush()
            self.close_connection = True


def _hashes(name: str, data: bytes) -> dict[str, Any]:
    """As the hub announces them: Git's for small files, and SHA-256 for large ones."""
    git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    if not name.endswith((".gguf", ".safetensors")):
        return {"blobId": git}
    sha256 = hashlib.sha256(data).hexdigest()
    return {"blobId": git, "lfs": {"sha256": sha256, "size": len(data), "pointerSize": 130}}


@contextmanager
def hub(files: dict[str, bytes]) -> Iterator[Hub]:
    """A running hub."""
    server = Hub(files)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
