"""Grammars compiled in a thread, so that no step waits for one."""

from __future__ import annotations

from collections.abc import Iterator, Set
from concurrent.futures import Future

from hagane.engine.background_thread import BackgroundThread, failure
from hagane.engine.prerequisites import Failure, Settled
from hagane.engine.sampling.constraints import Constraint, Grammars
from hagane.pool.messages import GenerateRequest


class GrammarCompiler:
    """Compiles what requests ask for into `grammars`; a `Provider` of prerequisites."""

    def __init__(self, grammars: Grammars, thread: BackgroundThread) -> None:
        self._grammars, self._thread = grammars, thread
        self._compiling: dict[str, Future[Constraint]] = {}

    @property
    def busy(self) -> bool:
        """Whether `poll` has anything to look after."""
        return bool(self._compiling)

    def want(self, request: GenerateRequest) -> str | None:
        """The digest of the grammar that `request` has to wait for; None if there is none."""
        grammar = request.grammar
        if grammar is None or grammar in self._grammars:
            return None
        if grammar.digest not in self._compiling:
            compiling = self._thread.submit(self._grammars.compile, grammar)
            self._compiling[grammar.digest] = compiling
        return grammar.digest

    def poll(self, in_use: Set[str]) -> Iterator[Settled]:
        """The grammars that were compiled, or cannot be. Those `in_use` are not forgotten."""
        for digest in [d for d, future in self._compiling.items() if future.done()]:
            future = self._compiling.pop(digest)
            error = failure(future)
            if error is None:
                self._grammars.keep(digest, future.result(), in_use)
            yield Settled(digest, None if error is None else Failure("invalid_request", error))
