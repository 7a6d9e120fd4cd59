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
    """Read in a thread of its own, from the start.

    For 150,000 tokens that takes most of a second, and all the while llguidance holds the
    interpreter's lock: alongside streams each of them would stand still. While weights are loaded,
    which is native work, nobody notices.

    `tokenizer` gives the text of the model's tokenizer.json.
    """

    def __init__(self, tokenizer: Callable[[], str]) -> None:
        self._tokenizer = tokenizer
        self._reading: Future[llguidance.LLTokenizer] = Future()
        threading.Thread(target=self._read, name="vocabulary", daemon=True).start()

    def wait(self) -> None:
        """Until it is read, or found unusable: requests with grammars are refused elsewhere."""
        if (error := self._reading.exception()) is not None:
            logger.debug("no grammars for this model: %s", error)

    def tokens(self) -> llguidance.LLTokenizer:
        """Raises what reading it has raised: ModelError, or ValueError from llguidance."""
        return self._reading.result()

    def _read(self) -> None:
        try:
            import llguidance

            self._reading.set_result(llguidance.LLTokenizer(self._tokenizer()))
        except Exception as error:  # the engine serves everything else
            self._reading.set_exception(error)
