"""Text to token ids and back, through a model's own `tokenizer.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers

from hagane.system.errors import InvalidRequestError, ModelError
from hagane.text.gguf_tokenizer import load_gguf_tokenizer
from hagane.weights.sources.config import is_gguf


def _byte_alphabet() -> dict[str, int]:
    """The printable stand-ins that byte-level BPE writes bytes with (Radford et al., 2019)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + i): byte for i, byte in enumerate(hidden)}


_ALPHABET = _byte_alphabet()


class Tokenizer:
    """A `tokenizers` tokenizer with what `tokenizer_config.json` adds to it. Thread safe."""

    def __init__(self, backend: tokenizers.Tokenizer, config: dict[str, Any]) -> None:
        self._backend = backend
        self.config = config
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        added = backend.get_added_tokens_decoder()
        self._added = {i: token.content for i, token in added.items()}
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self.bos_token_id = self._special("bos_token")
        self.eos_token_id = self._special("eos_token")
        self._add_bos = bool(config.get("add_bos_token"))
        kind = json.loads(backend.to_str())
        self._byte_level = "ByteLevel" in json.dumps(kind.get("decoder") or {})

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """Read a model's directory or GGUF file. Raises ModelError naming the file at fault."""
        if is_gguf(directory):
            return cls(*load_gguf_tokenizer(directory))
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise ModelError(
                f"{path} does not exist: save the model's fast tokenizer beside its weights"
            )
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ModelError(f"{path} is not a tokenizer: {error}") from None
        return cls(backend, _read_json(directory / "tokenizer_config.json"))

    def to_json(self) -> str:
        """The text of a tokenizer.json of this vocabulary; 0.7 s for one of 150,000 tokens."""
        text: str = self._backend.to_str()
        return text

    def special_text(self, key: str) -> str | None:
        """The token that `tokenizer_config.json` gives the role `key`, such as `bos_token`."""
        value = self.config.get(key)
        content = value.get("content") if isinstance(value, dict) else value
        return content if isinstance(content, str) else None

    def _special(self, key: str) -> int | None:
        content = self.special_text(key)
        return None if content is None else self._backend.token_to_id(content)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`; the begin-of-text token is added at most once.

        A rendered chat template already has its special tokens: pass add_special_tokens=False.
        """
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        bos = self.bos_token_id
        if add_special_tokens and self._add_bos and bos is not None and ids[:1] != [bos]:
            return [bos, *ids]
        return ids

    def encode_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of rendered text, and the characters [start, end) that each stands for."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, ids: list[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `ids`."""
        text: str = self._backend.decode(ids, skip_special_tokens=skip_special_tokens)
        return text

    def token_text(self, token_id: int) -> str:
        """The token as text; bytes that are no whole characters show as replacement characters."""
        return self.token_bytes(token_id).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes a token stands for. Raises InvalidRequestError for an unknown id."""
        token = self._backend.id_to_token(token_id)
        if token is None:
            raise InvalidRequestError(
                f"Token id {token_id} is not in the vocabulary of {self.vocab_size} tokens."
            )
        if token_id in self._added:
            return token.encode()
        if self._byte_level and all(letter in _ALPHABET for letter in token):
            return bytes(_ALPHABET[letter] for letter in token)
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes([int(token[3:5], 16)])
        return token.replace("\u2581", " ").encode()


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} must hold a JSON object")
    return value
