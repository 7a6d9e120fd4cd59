"""An answer on the terminal: Markdown where someone watches, plain text where a program reads."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.text import Text

_FENCES = ("```", "~~~")
_REFRESHES_PER_SECOND = 8


class AnswerView(Protocol):
    """Shows an answer piece by piece inside its `with` block.

    with view:
        view.reason("The user greets me.")
        view.add("Hel")
        view.add("lo.")
    """

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def reason(self, text: str) -> None:
        """Add a piece of the model's reasoning."""

    def add(self, text: str) -> None:
        """Add a piece of the answer."""


class PlainView:
    """Writes the answer to standard output as it comes, without the reasoning."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        print()

    def reason(self, text: str) -> None:
        """Left out: a program that reads the output wants the answer."""

    def add(self, text: str) -> None:
        print(text, end="", flush=True)


class MarkdownView:
    """Renders Markdown block by block: finished ones stay, the last one is redrawn as it grows.

    Redrawing the whole answer would flicker, and fail once it is taller than the terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(
            console=console, transient=True, refresh_per_second=_REFRESHES_PER_SECOND,
            vertical_overflow="crop",
        )  # fmt: skip
        self._rest = ""
        self._reasoning = ""

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.update(Text(""))
        self._live.stop()
        if self._reasoning:
            self._console.print(Text(self._reasoning.strip(), style="dim italic"))
        if self._rest.strip():
            self._console.print(Markdown(self._rest))

    def reason(self, text: str) -> None:
        """Add a piece of reasoning, shown dim above the answer."""
        self._reasoning += text
        self._live.update(Text(self._reasoning.strip(), style="dim italic"))

    def add(self, text: str) -> None:
        if self._reasoning:
            self._live.console.print(Text(self._reasoning.strip(), style="dim italic"))
            self._reasoning = ""
        finished, self._rest = finished_blocks(self._rest + text)
        if finished.strip():
            self._live.console.print(Markdown(finished))
        self._live.update(Markdown(self._rest))


def finished_blocks(text: str) -> tuple[str, str]:
    """Split Markdown after the last blank line that is not inside a fenced block of code.

    A list goes on over blank lines, so that one which is still growing is not split.
    """
    end = position = 0
    fence = ""
    for line in text.splitlines(keepends=True):
        position += len(line)
        stripped = line.lstrip()
        if fence:
            if stripped.startswith(fence):
                fence = ""
        elif stripped.startswith(_FENCES):
            fence = stripped[:3]
        elif not stripped and not _continues(text[position:]):
            end = position
    return text[:end], text[end:]


def _continues(following: str) -> bool:
    """Whether what follows a blank line may belong to a list: it is indented or an item."""
    first = following[:1]
    return not first or first.isspace() or first in "-*+" or first.isdigit()


def answer_view(plain: bool) -> AnswerView:
    """Markdown on a terminal unless `plain`; plain text anywhere else."""
    if plain or not sys.stdout.isatty():
        return PlainView()
    return MarkdownView(Console())
