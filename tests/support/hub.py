"""A model hub on loopback, as far as `huggingface_hub` needs one to download."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

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
        names = [n.removeprefix(prefix) for n in self.server.files if n.startswith(prefix)]
        body = {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]}
        self._answer(200 if names else 404, json.dumps(body).encode(), {})

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
        large = name.endswith((".gguf", ".safetensors"))
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        headers = {
            "X-Repo-Commit": COMMIT,
            "ETag": f'"{hashlib.sha256(data).hexdigest() if large else git}"',
        }
        start = 0
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start = int(wanted[1])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self.server.ranges.append(self.headers["Range"])
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
