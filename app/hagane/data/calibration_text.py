"""Text to round weights by: a file's, or our own words and sources in several languages."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, zip_longest
from pathlib import Path

from hagane.data.documents import Corpus, documents
from hagane.system.errors import ConfigurationError

AUTO = "auto"
_PACKAGE = Path(__file__).resolve().parents[1]
# Sources as long as a window or more, of as many packages as there are.
_LEAST_BYTES = 4000
_OF_EACH_PACKAGE = 4


def calibration_texts(source: str) -> Iterator[str]:
    """The documents of a file, directory or glob; for `auto` English, Japanese, Python, JavaScript.

    Raises ConfigurationError naming the option and what to do.
    """
    if source == AUTO:
        yield from _own()
        return
    try:
        yield from documents(Corpus(path=Path(source)))
    except UnicodeDecodeError:
        raise ConfigurationError(
            f"--calibrate: {source} is not UTF-8: convert it, or use --calibrate auto"
        ) from None
    except (ConfigurationError, OSError) as error:
        raise ConfigurationError(
            f"--calibrate: {error}: give text or JSON Lines with 'text' or 'messages', or auto"
        ) from None


def _own() -> Iterator[str]:
    """Prose first, a paragraph a document, which there is least of, then code in both languages."""
    for path in sorted((_PACKAGE / "data" / "calibration").glob("*.txt")):
        yield from (f"{text}\n\n" for text in path.read_text(encoding="utf-8").split("\n\n"))
    packages = sorted(path for path in _PACKAGE.iterdir() if path.is_dir())
    python = [_long(package.rglob("*.py")) for package in packages]
    script = _long((_PACKAGE / "web" / "chat").glob("*.js"))
    code = chain.from_iterable(zip_longest(chain.from_iterable(zip_longest(*python)), script))
    for path in filter(None, code):
        yield path.read_text(encoding="utf-8")


def _long(paths: Iterator[Path]) -> list[Path]:
    found = [path for path in sorted(paths) if path.stat().st_size >= _LEAST_BYTES]
    return found[:_OF_EACH_PACKAGE]
