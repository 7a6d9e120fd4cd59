"""`hagane chat`: a streaming chat in the terminal, over HTTP like any other client."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any

import httpx
from pydantic import Field

from hagane.cli.command import Options, read
from hagane.system.errors import HaganeError


class ChatOptions(Options):
    """Chat in the terminal with a running server."""

    url: str = Field("http://127.0.0.1:8000", description="the server's address")
    model: str | None = Field(None, description="model id; default: the server's first")
    api_key: str = Field("", description="a key of the server, if it requires one")
    system: str | None = Field(None, description="system prompt")
    temperature: float | None = Field(None, description="default: the model's own")


def run(arguments: list[str]) -> int:
    """Chat until the end of input."""
    options = read(ChatOptions, arguments, "chat")
    client = ChatClient(options.url, options.api_key, options.model, options.system)
    converse(client, options.temperature)
    return 0


class ChatClient:
    """Keeps one conversation with a running server."""

    def __init__(self, url: str, api_key: str, model: str | None, system: str | None) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        timeout = httpx.Timeout(10.0, read=None)
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout)
        self.model = model or self._first_model()
        self._system = [{"role": "system", "content": system}] if system else []
        self.messages: list[dict[str, str]] = list(self._system)

    def _first_model(self) -> str:
        response = self._send("GET", "/v1/models")
        name: str = response.json()["data"][0]["id"]
        return name

    def _send(self, method: str, path: str) -> httpx.Response:
        try:
            response = self._http.request(method, path)
        except httpx.HTTPError as error:
            raise HaganeError(
                f"no server answers at {self._http.base_url}: {error}; "
                "start one with `hagane serve`"
            ) from None
        if response.is_error:
            raise HaganeError(_message(response))
        return response

    def reset(self) -> None:
        """Forget the conversation, but not the system prompt."""
        self.messages = list(self._system)

    def ask(self, text: str, temperature: float | None) -> Iterator[str]:
        """Send one message; yields the answer as it comes and remembers both."""
        self.messages.append({"role": "user", "content": text})
        body: dict[str, Any] = {"model": self.model, "messages": self.messages, "stream": True}
        if temperature is not None:
            body["temperature"] = temperature
        answer = ""
        try:
            for piece in self._stream(body):
                answer += piece
                yield piece
        finally:
            if answer:
                self.messages.append({"role": "assistant", "content": answer})
            else:
                self.messages.pop()

    def _stream(self, body: dict[str, Any]) -> Iterator[str]:
        with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.is_error:
                response.read()
                raise HaganeError(_message(response))
            for line in response.iter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                event = json.loads(line[len("data: ") :])
                if "error" in event:
                    raise HaganeError(event["error"]["message"])
                for choice in event["choices"]:
                    yield choice["delta"].get("content") or ""


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}"


def converse(client: ChatClient, temperature: float | None) -> None:
    """Read messages until the end of input; /reset forgets, /quit ends, Ctrl-C stops an answer."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - line editing and history for input()
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            text = input(prompt).strip()
        except (EOFError, KeyboardInterrupt):
            return
        if text == "/quit":
            return
        if text == "/reset":
            client.reset()
            continue
        if not text:
            continue
        try:
            for piece in client.ask(text, temperature):
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            pass
        except (HaganeError, httpx.HTTPError) as error:
            print(f"error: {error}", file=sys.stderr)
        print()
