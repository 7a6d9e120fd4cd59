"""GET / and /web/...: the pages' files."""

from __future__ import annotations

import os
from pathlib import Path

from fastapi import HTTPException, Request, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from hagane.api.access import guarded_router
from hagane.api.downloads import Download

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


class Pages(StaticFiles):
    """Starlette's static files, with the headers and the types of ours."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """The file, or that the browser's copy is still right. Raises HTTPException 404 or 405."""
        if Path(path).suffix not in _TYPES:
            raise HTTPException(404, f"There is no page {path!r} on this server.")
        return await super().get_response(path, scope)

    def file_response(
        self,
        full_path: str | os.PathLike[str],
        stat_result: os.stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        """Starlette's answer and our headers."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        if response.status_code != 304:
            kind = _TYPES[Path(full_path).suffix]
            response = Download(
                full_path, status_code, stat_result=stat_result, headers={"Content-Type": kind}
            )
        name = Path(full_path).relative_to(FOLDER).as_posix()
        response.headers.update(_HEADERS)
        if name.startswith(_FRAMED_FOLDERS):
            response.headers.update(_FRAMED)
        if name == _FRAME:
            response.headers["Content-Security-Policy"] = _FRAME_POLICY
            response.headers["X-Frame-Options"] = "SAMEORIGIN"
        return response


router = guarded_router(include_in_schema=False)
# The target of `/web`.
pages = Pages(directory=FOLDER)


@router.api_route("/", methods=["GET", "HEAD"])
async def index(request: Request) -> Response:
    """The chat page."""
    return await pages.get_response("chat/index.html", request.scope)
