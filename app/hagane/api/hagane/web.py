"""GET / and /web/...: the pages' files, read into memory once and served from there alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, HTTPException, Request, Response

FOLDER = Path(__file__).resolve().parents[2] / "web"
# Named here because mimetypes.guess_type() asks the operating system, which may disagree.
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing inline, nothing from elsewhere, no HTML made from strings: what a model writes cannot run,
# and cannot call home by an image either.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
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


@dataclass(frozen=True)
class Asset:
    """One static file and the headers it is sent with."""

    content: bytes
    headers: Mapping[str, str]

    @classmethod
    def load(cls, path: Path) -> Asset:
        """Raises KeyError for a kind of file that the pages do not use."""
        content = path.read_bytes()
        etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        return cls(content, {**_HEADERS, "Content-Type": _TYPES[path.suffix], "ETag": etag})


def load_assets(folder: Path = FOLDER) -> dict[str, Asset]:
    """Every file under `folder` by its path within: a request never looks on the disk."""
    files = (path for path in folder.rglob("*") if path.suffix in _TYPES)
    return {path.relative_to(folder).as_posix(): Asset.load(path) for path in files}


router = APIRouter(include_in_schema=False)
_ASSETS = load_assets()


@router.api_route("/", methods=["GET", "HEAD"])
async def index(request: Request) -> Response:
    """The chat page."""
    return answer(request, "chat/index.html")


@router.api_route("/web/{name:path}", methods=["GET", "HEAD"])
async def asset(name: str, request: Request) -> Response:
    """A script, style or picture of the pages. Raises HTTPException 404 for any other name."""
    return answer(request, name)


def answer(request: Request, name: str) -> Response:
    """The file `name`, or that the browser's copy is still right. Raises HTTPException 404."""
    found = _ASSETS.get(name)
    if found is None:
        raise HTTPException(404, f"There is no file {name!r} among the pages of this server.")
    known = [tag.strip() for tag in request.headers.get("if-none-match", "").split(",")]
    if "*" in known or found.headers["ETag"] in (tag.removeprefix("W/") for tag in known):
        return Response(None, 304, dict(found.headers))
    return Response(found.content, 200, dict(found.headers))
