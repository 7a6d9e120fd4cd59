"""`hagane chat`: a streaming chat in the terminal with a running server."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from hagane.cli.command import Options, nearest, read
from hagane.cli.server_client import ServerClient
from hagane.cli.terminal import AnswerView, answer_view
from hagane.system.errors import ConfigurationError, HaganeError
from hagane.system.files import write_text
from hagane.system.settings import PREFIX

_QUOTES = '"""'
_HISTORY_LINES = 1000
HELP = f"""\
/model [NAME]        choose a model, or list the server's
/system [TEXT]       set the system prompt; without TEXT, show it
/temperature [T]     set the temperature; without T, the model's own
/retry               ask the last question again
/reset               forget the conversation, but not the system prompt
/save FILE           write the conversation as Markdown
/help                this list
/quit                end; so does Control-D
A line that ends in \\ goes on in the next; lines between {_QUOTES} and {_QUOTES} are one message.
Control-C ends an answer."""


class ChatOptions(Options):
    """Chat in the terminal with a running server."""

    url: str = Field("http://127.0.0.1:8000", description="the server's address")
    model: str | None = Field(None, description="model id; default: the server's first")
    api_key: str | None = Field(
        None, description=f"a key of the server; default: the first of {PREFIX}API_KEYS"
    )
    system: str | None = Field(None, description="system prompt")
    temperature: float | None = Field(None, description="default: the model's own")
    plain: bool = Field(False, description="print the answer's text as it is, not as Markdown")


def run(arguments: list[str]) -> int:
    """Chat until the end of input."""
    options = read(ChatOptions, arguments, "chat")
    key = options.api_key
    if key is None:
        key = os.environ.get(f"{PREFIX}API_KEYS", "").partition(",")[0].strip()
    chat = Chat(ServerClient(options.url, key), options.model, options.system)
    chat.temperature = options.temperature
    with _line_editing():
        converse(chat, options.plain)
    return 0


@dataclass
class Answer:
    """What is known of the last answer: seconds since the question, and tokens when it is whole."""

    first: float | None = None
    whole: float | None = None
    tokens: int | None = None

    def summary(self) -> str:
        """One line of figures, or nothing for an answer that was broken off."""
        if self.first is None or self.whole is None or self.tokens is None:
            return ""
        speed = ""
        if self.tokens > 1 and self.whole > self.first:
            speed = f", {(self.tokens - 1) / (self.whole - self.first):.1f} tokens per second"
        return f"{self.tokens} tokens{speed}, first after {self.first:.2f} s"


class Chat:
    """Keeps one conversation with a running server. Raises HaganeError where it refuses."""

    def __init__(self, client: ServerClient, model: str | None, system: str | None) -> None:
        self._client = client
        self.model = model or self.models()[0]
        self.system = system
        self.temperature: float | None = None
        self.messages: list[dict[str, str]] = []
        self.last = Answer()

    def models(self) -> list[str]:
        """The ids of the models that the server offers."""
        return [model["id"] for model in self._client.get("/v1/models")["data"]]

    def ask(self, text: str) -> Iterator[tuple[str, str]]:
        """Send one message; yields ("reasoning" or "text", piece) as they come.

        Question and answer are remembered once a piece has come, even of an answer broken off.
        """
        question = {"role": "user", "content": text}
        system = [{"role": "system", "content": self.system}] if self.system else []
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [*system, *self.messages, question],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.temperature is not None:
            body["temperature"] = self.temperature
        answer = ""
        try:
            for kind, piece in self._pieces(body):
                if kind == "text":
                    answer += piece
                yield kind, piece
        finally:
            if answer:
                self.messages += [question, {"role": "assistant", "content": answer}]

    def _pieces(self, body: dict[str, Any]) -> Iterator[tuple[str, str]]:
        start = time.monotonic()
        self.last = Answer()
        for event in self._client.events("POST", "/v1/chat/completions", body):
            if event.get("usage"):
                self.last.tokens = event["usage"]["completion_tokens"]
            for choice in event["choices"]:
                delta = choice["delta"]
                for kind, name in (("reasoning", "reasoning_content"), ("text", "content")):
                    if piece := delta.get(name):
                        self.last.first = self.last.first or time.monotonic() - start
                        yield kind, piece
        self.last.whole = time.monotonic() - start

    def take_back(self) -> str | None:
        """Forget the last question and its answer; returns the question."""
        if not self.messages:
            return None
        *self.messages, question, _ = self.messages
        return question["content"]

    def markdown(self) -> str:
        """The conversation as a document."""
        system = [("System", self.system)] if self.system else []
        turns = [(message["role"].capitalize(), message["content"]) for message in self.messages]
        return "\n".join(f"## {who}\n\n{text}\n" for who, text in [*system, *turns])


def converse(chat: Chat, plain: bool) -> None:
    """Read messages and commands until the end of input."""
    interactive = sys.stdin.isatty()
    if interactive:
        print(f"{chat.model}; /help lists the commands")
    while (text := read_message("> " if interactive else "")) is not None:
        try:
            question = _command(chat, text) if text.startswith("/") else text
            if question:
                _show(chat, question, answer_view(plain))
        except EOFError:
            return
        except HaganeError as error:
            print(f"error: {error}", file=sys.stderr)


def read_message(prompt: str) -> str | None:
    """One message, of several lines if it is written so; None at the end of input."""
    lines: list[str] = []
    quoted = False
    try:
        while True:
            line = input("  " if lines and prompt else prompt)
            if quoted:
                if line.rstrip() == _QUOTES:
                    break
                lines.append(line)
            elif not lines and line.strip() == _QUOTES:
                quoted, lines = True, []
                prompt = prompt and "  "
            elif line.endswith("\\"):
                lines.append(line[:-1])
            else:
                lines.append(line)
                break
    except EOFError:
        if not lines:
            return None
    except KeyboardInterrupt:
        return None
    return "\n".join(lines).strip()


def _show(chat: Chat, question: str, view: AnswerView) -> None:
    with view, contextlib.suppress(KeyboardInterrupt):
        for kind, piece in chat.ask(question):
            if kind == "text":
                view.add(piece)
            else:
                view.reason(piece)
    if sys.stdout.isatty() and (summary := chat.last.summary()):
        print(f"\x1b[2m{summary}\x1b[0m")


def _command(chat: Chat, text: str) -> str | None:
    """Run a line that begins with a slash; returns a question to ask, or nothing.

    Raises EOFError to end, ConfigurationError for a command that does not exist or lacks a value.
    """
    name, _, value = text.partition(" ")
    value = value.strip()
    if name in ("/quit", "/exit"):
        raise EOFError
    commands = {
        "/help": _help, "/model": _model, "/system": _system, "/temperature": _temperature,
        "/retry": _retry, "/reset": _reset, "/save": _save,
    }  # fmt: skip
    if name not in commands:
        hint = nearest(name, commands) or "."
        raise ConfigurationError(f"there is no command {name}{hint} See /help")
    return commands[name](chat, value)


def _help(chat: Chat, _: str) -> None:
    print(HELP)


def _model(chat: Chat, name: str) -> None:
    known = chat.models()
    if not name:
        print("\n".join(f"{'*' if model == chat.model else ' '} {model}" for model in known))
    elif name in known:
        chat.model = name
    else:
        raise ConfigurationError(f"the server has no model {name!r}{nearest(name, known)}")


def _system(chat: Chat, text: str) -> None:
    if text:
        chat.system = text
    else:
        print(chat.system or "no system prompt")


def _temperature(chat: Chat, text: str) -> None:
    try:
        chat.temperature = float(text) if text else None
    except ValueError:
        raise ConfigurationError(f"{text!r} is no number: try /temperature 0.7") from None


def _retry(chat: Chat, _: str) -> str:
    question = chat.take_back()
    if question is None:
        raise ConfigurationError("nothing was asked yet")
    return question


def _reset(chat: Chat, _: str) -> None:
    chat.messages.clear()


def _save(chat: Chat, name: str) -> None:
    if not name:
        raise ConfigurationError("say where to: /save FILE.md")
    path = Path(name).expanduser()
    if path.exists():
        raise ConfigurationError(f"{path} exists; take another name")
    try:
        write_text(path, chat.markdown())
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from None
    print(f"saved to {path}")


@contextlib.contextmanager
def _line_editing() -> Iterator[None]:
    """Editing and a history of the lines typed, which the next chat has again."""
    try:
        import readline
    except ImportError:
        yield
        return
    if not sys.stdin.isatty():
        yield
        return
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state")
    history = state / "hagane/chat_history"
    with contextlib.suppress(OSError):
        readline.read_history_file(history)
    readline.set_history_length(_HISTORY_LINES)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            history.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            readline.write_history_file(history)
            history.chmod(0o600)
