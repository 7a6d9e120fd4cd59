"""A model's tokens as llguidance wants them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import llguidance

logger = logging.getLogger(__name__)


class Vocabulary:
    """Read once, in a thread of its own, when the engine is idle or a grammar needs it.

    For 150,000 tokens that takes most of a second, and all the while llguidance holds the
    interpreter's lock: alongside streams each of them would stand still, and loading weights
    would wait for it.

    `tokenizer` gives the text of the model's tokenizer.json.
    """

    def __init__(self, tokenizer: Callable[[], str]) -> None:
        self._tokenizer = tokenizer
        self._reading: Future[llguidance.LLTokenizer] | None = None
        self._starting = threading.Lock()

    @property
    def begun(self) -> bool:
        """Whether it was read, or is being read."""
        return self._reading is not None

    def read(self) -> Future[llguidance.LLTokenizer]:
        """Begin to read it, unless that was begun. Any thread may call."""
        if self._reading is None:
            with self._starting:
                if self._reading is None:
                    self._reading = Future()
                    threading.Thread(
                        target=self._read, args=[self._reading], name="vocabulary", daemon=True
                    ).start()
        return self._reading

    def tokens(self) -> llguidance.LLTokenizer:
        """Raises what reading it has raised: ModelError, or ValueError from llguidance."""
        return self.read().result()

    def _read(self, reading: Future[llguidance.LLTokenizer]) -> None:
        try:
            import llguidance

            reading.set_result(llguidance.LLTokenizer(self._tokenizer()))
        except BaseException as error:  # the library's panics are no Exception
            logger.debug("no grammars for this model: %s", error)
            known = isinstance(error, Exception)
            reading.set_exception(error if known else ValueError(str(error)))
