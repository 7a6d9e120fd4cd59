"""Whose files and batches a request is about: an API key's own, or with the admin key all."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from fastapi import Request

from hagane.api.errors import PermissionDeniedError
from hagane.api.keyring import KeyRing, authorization_of
from hagane.store.batches import ADMINISTRATORS
from hagane.store.files import Files
from hagane.system.errors import TooLargeError


def owner_of(request: Request) -> str:
    """The label of the key that the request comes with, or ADMINISTRATORS.

    Where administrators have a listener of their own, the admin key is a key like others elsewhere.
    """
    keys: KeyRing = request.app.state.serving.keys
    if request.app.state.administered and keys.holds_admin_key(request):
        return ADMINISTRATORS
    label: str = request.state.key_label
    return label


def scope_of(request: Request) -> str | None:
    """The owner whose entries exist for this request; None for administrators, who see all."""
    owner = owner_of(request)
    return None if owner == ADMINISTRATORS else owner


def refuse_foreign_page(request: Request) -> None:
    """Raises PermissionDeniedError for a form that another site's page sends without a key.

    Browsers send forms across origins without asking the server first; a key they do not send.
    """
    origin = request.headers.get("origin")
    if origin is None or authorization_of(request):
        return
    allowed = request.app.state.serving.settings.origins
    if urlsplit(origin).netloc != request.headers.get("host") and origin not in allowed:
        raise PermissionDeniedError(
            f"Pages of '{origin[:80]}' may not upload files: list it in cors_origins, or send the "
            "file from a program."
        )


def require_purpose(owner: str, purpose: str) -> None:
    """Raises PermissionDeniedError for a file that only administrators may upload."""
    if owner != ADMINISTRATORS and purpose != "batch":
        raise PermissionDeniedError(
            f"'purpose' is '{purpose}', which is for the admin key; with this key files have the "
            "purpose 'batch'."
        )


class FileAllowance:
    """The bytes that files of each API key may take; those of administrators are not bounded."""

    def __init__(self, files: Files, most: int) -> None:
        self._files, self._most = files, most
        self._lock = asyncio.Lock()
        self._arriving: Counter[str] = Counter()

    async def left(self, owner: str) -> int:
        """Bytes that are neither taken nor reserved; below 0 where results took too many."""
        used = await asyncio.to_thread(self._files.used, owner)
        return self._most - used - self._arriving[owner]

    @asynccontextmanager
    async def reserved(self, owner: str, declared: int | None, limit: int) -> AsyncIterator[int]:
        """Bytes that a file may have: `limit` at most, `declared` if that is known.

        Kept free as long as the context is open. Raises TooLargeError where they are not there,
        PermissionDeniedError where keys have no files.
        """
        if owner == ADMINISTRATORS:
            yield limit
            return
        if not self._most:
            raise PermissionDeniedError(
                "Files and batches are for the admin key here (key_file_bytes is 0)."
            )
        # A file that arrives meanwhile is counted as one that is there or as one that arrives.
        async with self._lock:
            left = await self.left(owner)
            wanted = min(limit, max(left, 1) if declared is None else declared)
            if wanted > left:
                raise TooLargeError(
                    f"The files of this key may take {self._most} bytes (key_file_bytes), of which "
                    f"{max(left, 0)} are left: delete files, or send a smaller one.",
                    param="file",
                    code="file_quota_exceeded",
                )
            self._arriving[owner] += wanted
        try:
            yield wanted
        finally:
            async with self._lock:
                self._arriving[owner] -= wanted
