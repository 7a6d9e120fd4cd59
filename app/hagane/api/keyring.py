"""The keys that requests come with: those of the settings, and those that admins make."""

from __future__ import annotations

import hmac
import time
from enum import Enum

from fastapi import Request

from hagane.api.errors import AuthenticationError, PermissionDeniedError
from hagane.api.limits import ANONYMOUS, Accounts
from hagane.store.keys import ApiKey, ApiKeys, key_label
from hagane.system.settings import Settings


class Access(Enum):
    """The kind of key that a route requires."""

    OPEN = "none"
    METRICS = "the metrics key, where one is configured; the admin key does, too"
    CHAT = "an API key, where any is configured or made; the admin key does, too"
    ADMIN = "the admin key; closed while none is configured"


class KeyRing:
    """Decides whose key opens what. Keys that were made are kept in memory, by their labels.

    Once a key was made, chat routes require one, also after the last was revoked: revoking shall
    not open the server to everybody.
    """

    def __init__(self, settings: Settings, stored: ApiKeys, accounts: Accounts) -> None:
        self._settings = settings
        self._admin = settings.admin_key.get_secret_value()
        self._metrics = settings.metrics_key.get_secret_value()
        self._accounts = accounts
        self._made: dict[str, ApiKey] = {}
        for key in stored.all():
            self.put(key)

    def put(self, key: ApiKey) -> None:
        """Honour a key that was made, or what was changed about it."""
        self._made[key.label] = key
        self._accounts.put(key.label, key.limits, urgent=key.urgent)

    def names(self) -> dict[str, str]:
        """The names of the keys that were made, by label."""
        return {label: key.name for label, key in self._made.items()}

    def required(self, access: Access) -> bool:
        """Whether a route of this kind needs any key."""
        return {
            Access.OPEN: False,
            Access.METRICS: bool(self._metrics),
            Access.CHAT: bool(self._settings.keys or self._made),
            Access.ADMIN: True,
        }[access]

    def authorize(self, access: Access, authorization: str) -> str:
        """The label of the caller's key, where `access` is granted to it.

        `authorization` is the header's value. Raises AuthenticationError for no key or a wrong one,
        and PermissionDeniedError where the admin routes are closed, or closed to this key.
        """
        key = _bearer(authorization)
        if access is Access.ADMIN and not self._admin:
            raise PermissionDeniedError(
                "The admin routes are closed: start the server with HAGANE_ADMIN_KEY to open them."
            )
        if not self.required(access):
            return ANONYMOUS
        if is_one_of(key, self._admin):
            return key_label(key)
        chats = is_one_of(key, *self._settings.keys) or self._was_made(key)
        scrapes = is_one_of(key, self._metrics)
        if (access is Access.CHAT and chats) or (access is Access.METRICS and scrapes):
            return key_label(key)
        if chats or scrapes:
            raise PermissionDeniedError(
                f"This key does not open this route, which requires {access.value}."
            )
        raise AuthenticationError(
            "Missing or incorrect API key: send 'Authorization: Bearer KEY' or 'x-api-key: KEY' "
            "with a key of this server."
        )

    def honours(self, label: str) -> bool:
        """Whether requests may still come with the key of this label."""
        if label == ANONYMOUS:
            return not self.required(Access.CHAT)
        made = self._made.get(label)
        if made is not None and made.valid(time.time()):
            return True
        return label in {key_label(key) for key in (*self._settings.keys, self._admin) if key}

    def require_honoured(self, label: str) -> str:
        """The label again. Raises AuthenticationError for a key that no request may come with."""
        if not self.honours(label):
            raise AuthenticationError("The key was revoked, or has expired.")
        return label

    @property
    def administrators(self) -> str:
        """The label of the admin key; without one, that of everybody."""
        return key_label(self._admin) if self._admin else ANONYMOUS

    def holds_admin_key(self, request: Request) -> bool:
        """Whether the request comes with the admin key."""
        return is_one_of(_bearer(authorization_of(request)), self._admin)

    def _was_made(self, key: str) -> bool:
        found = self._made.get(key_label(key))
        return found is not None and found.matches(key) and found.valid(time.time())


def is_one_of(given: str, *keys: str) -> bool:
    """Compares with every key, in constant time each; no key is empty."""
    raw = given.encode("utf-8", "surrogateescape")
    matches = [hmac.compare_digest(raw, key.encode()) for key in keys if key]
    return any(matches)


def authorization_of(request: Request) -> str:
    """The header `Authorization`; Anthropic's clients send the key alone, as `x-api-key`."""
    if (given := request.headers.get("authorization")) is not None:
        return given
    key = request.headers.get("x-api-key")
    return "" if key is None else f"Bearer {key}"


def _bearer(authorization: str) -> str:
    scheme, _, given = authorization.partition(" ")
    return given.strip() if scheme.lower() == "bearer" else ""
