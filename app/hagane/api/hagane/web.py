"""GET / and /web/...: the pages' files."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from stat import S_ISREG

from fastapi import HTTPException, Request, Response
from starlette.datastructures import Headers
from starlette.staticfiles import NotModifiedResponse, StaticFiles
from starlette.types import Scope

from hagane.api.access import guarded_router

FOLDER = Path(__file__).resolve().parents[2] / "web"
# Named here because mimetypes.guess_type() reads the system's table, which may differ. Files of
# other kinds in the folder are no pages.
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
# Nothing inline, nothing from elsewhere, no HTML made from strings: what a model writes cannot run,
# and cannot call home by an image either.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "font-src 'self'",
        "connect-src 'self'",
        "frame-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Kept by browsers, used only after asking: an upgraded server never meets yesterday's page.
    "Cache-Control": "no-cache",
}


# Diagrams are drawn by a library that makes HTML from strings. Its frame has no origin (sandbox):
# it reaches neither the page nor the server's routes, and loads nothing but itself.
_FRAME = "diagram/index.html"
_FRAME_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self' 'unsafe-inline'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'self'",
        "sandbox allow-scripts",
    )
)
# What is without an origin is from elsewhere for the files that it loads.
_FRAMED = {"Cross-Origin-Resource-Policy": "cross-origin"}
_FRAMED_FOLDERS = ("diagram", "vendor/mermaid")


# Smaller ones are not worth a header more; larger ones are compressed in a thread.
_LEAST_COMPRESSED = 1_024
_MOST_ON_THE_LOOP = 64 << 10
# Fonts are compressed already.
_PLAIN = {".woff2"}


@dataclass(frozen=True)
class _File:
    """A file as it was at one moment: time of its change in nanoseconds, and size in bytes."""

    moment: tuple[int, int]
    content: bytes
    headers: dict[str, str]


class Pages(StaticFiles):
    """The files of the pages, kept in memory while they stay as they are on disk.

    A page has some fifty of them: no thread, no open file and no byte too many for each.
    """

    def __init__(self) -> None:
        super().__init__(directory=FOLDER)
        self._kept: dict[tuple[str, bool], _File] = {}

    async def get_response(self, path: str, scope: Scope) -> Response:
        """The file, or that the browser's copy is still right. Raises HTTPException 404 or 405."""
        if scope["method"] not in ("GET", "HEAD"):
            raise HTTPException(
                405, "Pages are read by GET and HEAD.", headers={"Allow": "GET, HEAD"}
            )
        try:
            full, status = self.lookup_path(path)
        except (OSError, ValueError):
            full, status = "", None
        kind = Path(path).suffix
        if kind not in _TYPES or status is None or not S_ISREG(status.st_mode):
            raise HTTPException(404, f"There is no page {path!r} on this server.")
        asked = Headers(scope=scope)
        compressed = (
            "gzip" in asked.get("accept-encoding", "")
            and status.st_size >= _LEAST_COMPRESSED
            and kind not in _PLAIN
        )
        file = self._kept.get((full, compressed))
        if file is None or file.moment != _moment(status):
            read = partial(_read, full, status, compressed)
            large = status.st_size > _MOST_ON_THE_LOOP
            file = await asyncio.to_thread(read) if large else read()
            self._kept[full, compressed] = file
        if self.is_not_modified(Headers(file.headers), asked):
            return NotModifiedResponse(Headers(file.headers))
        return Response(file.content, headers=file.headers)


def _moment(status: os.stat_result) -> tuple[int, int]:
    return status.st_mtime_ns, status.st_size


def _read(full: str, status: os.stat_result, compressed: bool) -> _File:
    """The file and its headers."""
    content = Path(full).read_bytes()
    name = Path(full).relative_to(FOLDER).as_posix()
    headers = {
        **_HEADERS,
        "Content-Type": _TYPES[Path(full).suffix],
        "ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}{"-gzip" if compressed else ""}"',
        "Vary": "Accept-Encoding",
    }
    if name.startswith(_FRAMED_FOLDERS):
        headers |= _FRAMED
    if name == _FRAME:
        headers |= {"Content-Security-Policy": _FRAME_POLICY, "X-Frame-Options": "SAMEORIGIN"}
    if compressed:
        content = gzip.compress(content, mtime=0)
        headers["Content-Encoding"] = "gzip"
    return _File(_moment(status), content, headers)


router = guarded_router(include_in_schema=False)
# The target of `/web`.
pages = Pages()


@router.api_route("/", methods=["GET", "HEAD"])
async def index(request: Request) -> Response:
    """The chat page."""
    return await pages.get_response("chat/index.html", request.scope)
