"""A running server as the commands see it: over HTTP, like any other client."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from hagane.system.errors import HaganeError

_CONNECT_SECONDS = 10.0


class ServerClient:
    """Sends requests to the server at `url`; every failure is a HaganeError of one line."""

    def __init__(self, url: str, key: str) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # An answer may take as long as the model does.
        timeout = httpx.Timeout(_CONNECT_SECONDS, read=None)
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout)

    def get(self, path: str, **query: str | int) -> dict[str, Any]:
        """The JSON object at `path`."""
        return self._send("GET", path, params=query)

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Send `body` as JSON, and return the JSON object of the answer."""
        return self._send("POST", path, json=body or {})

    def delete(self, path: str) -> dict[str, Any]:
        """Delete what is at `path`, and return the JSON object of the answer."""
        return self._send("DELETE", path)

    def _send(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        if response.is_error:
            raise HaganeError(_message(response))
        answer: dict[str, Any] = response.json()
        return answer

    def events(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, **query: str | int
    ) -> Iterator[dict[str, Any]]:
        """The JSON objects of a stream of server-sent events, as they come."""
        try:
            with self._http.stream(method, path, json=body, params=query) as response:
                if response.is_error:
                    response.read()
                    raise HaganeError(_message(response))
                for line in response.iter_lines():
                    if not line.startswith("data: ") or line == "data: [DONE]":
                        continue
                    event: dict[str, Any] = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        raise HaganeError(event["error"]["message"])
                    yield event
        except httpx.ConnectError as error:
            raise self._unreachable(error) from None
        except httpx.HTTPError as error:
            raise HaganeError(f"the connection to {self._http.base_url} broke: {error}") from None

    def _unreachable(self, error: httpx.HTTPError) -> HaganeError:
        return HaganeError(
            f"no server answers at {self._http.base_url}: {error}; start one with `hagane serve`"
        )


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}"
