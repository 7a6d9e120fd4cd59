"""Text to token ids and back, through a model's own `tokenizer.json`."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import tokenizers

from hagane.system.errors import InvalidRequestError, ModelError
from hagane.system.files import read_json_object, read_regular
from hagane.system.sandbox import SandboxError, shared_sandbox
from hagane.text.gguf_tokenizer import load_gguf_tokenizer
from hagane.text.pre_tokenizers import PATTERNS
from hagane.weights.sources.config import is_gguf

# Bytes: the largest vocabularies in use take 40 MB.
_LARGEST = 256 << 20
_KNOWN_PATTERNS = frozenset(chain.from_iterable(PATTERNS.values()))


def _byte_alphabet() -> dict[str, int]:
    """The printable stand-ins that byte-level BPE writes bytes with (Radford et al., 2019)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + i): byte for i, byte in enumerate(hidden)}


_ALPHABET = _byte_alphabet()
_SPACE = "\u2581"
# Decoders under which a text's bytes are its tokens' bytes, one after the other.
_JOINING = {"ByteLevel", "ByteFallback", "Fuse", "Metaspace", "Replace", "Strip"}
# Composing characters makes UTF-8 at most this much shorter: three jamo to one syllable.
_COMPOSITION = 3
# Token ids, and for each of them the characters [start, end) of the text that it stands for.
Encoded = tuple[list[int], list[tuple[int, int]]]
_KEEPING = {"NFC", "NFD", "Prepend", "Replace"}
# Characters that `least_tokens` looks at in one go, and tokens that a cut between two may add.
_PIECE = 1 << 16
_CUT = 16


class Tokenizer:
    """A `tokenizers` tokenizer with what `tokenizer_config.json` adds to it. Thread safe.

    With `joins_bytes`, decoding is joining the bytes of `token_bytes`, but for
    `leading_spaces` spaces at the beginning of a text, which are left out. No token stands for more
    than `longest_token` bytes of text; it is None where nobody can tell.
    """

    def __init__(self, backend: tokenizers.Tokenizer, config: dict[str, Any]) -> None:
        # A limit that its training needed would cut prompts without a word.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.config = config
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        added = backend.get_added_tokens_decoder()
        self._added = {i: token.content for i, token in added.items()}
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self.bos_token_id = self._special("bos_token")
        self.eos_token_id = self._special("eos_token")
        self._add_bos = bool(config.get("add_bos_token"))
        parts = _parts(backend.decoder, "decoders")
        kinds = {part["type"] for part in parts}
        self._byte_level = "ByteLevel" in kinds
        covers_bytes = bool(kinds & {"ByteLevel", "ByteFallback"})
        self.joins_bytes = bool(kinds) and kinds <= _JOINING and all(map(_joins, parts))
        self.leading_spaces = sum(map(_leading_spaces, parts)) if self.joins_bytes else 0
        self._bytes: dict[int, bytes] = {}
        self.longest_token = self._longest_token() if covers_bytes else None

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """Read a model's directory or GGUF file. Raises ModelError naming the file at fault."""
        if is_gguf(directory):
            return cls(*load_gguf_tokenizer(directory))
        path, content = _read(directory)
        try:
            backend = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises bare Exception
            raise ModelError(f"{path} is not a tokenizer: {error}") from None
        _probe_patterns(backend, path)
        settings = directory / "tokenizer_config.json"
        return cls(backend, read_json_object(settings) if settings.exists() else {})

    def token_ids(self) -> dict[str, int]:
        """The ids of all tokens, by how the tokenizer writes them."""
        ids: dict[str, int] = self._backend.get_vocab(with_added_tokens=True)
        return ids

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

    def added_id(self, text: str) -> int | None:
        """The id of the added token that equals `text`; None if there is none."""
        token: int | None = self._backend.token_to_id(text)
        return token if token in self._added else None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`; the begin-of-text token is added at most once.

        A rendered chat template already has its special tokens: pass add_special_tokens=False.
        """
        with _panics_refused():
            ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        bos = self.bos_token_id
        if add_special_tokens and self._add_bos and bos is not None and ids[:1] != [bos]:
            return [bos, *ids]
        return ids

    def encode_pairs(
        self, pairs: Sequence[tuple[str, str]], most: int, *, cut: bool
    ) -> list[tuple[list[int], int]]:
        """Token ids of two texts in one, for cross-encoders, and where the second begins.

        Where they have more than `most` tokens together the longer text is cut first, with `cut`;
        without it more than `most` tokens come back, though not all of them. Equal texts are read
        once.
        """
        encodings = {text: self._encode_most(text, most) for pair in pairs for text in pair}
        room = most - self._backend.num_special_tokens_to_add(is_pair=True)
        found = []
        for pair in pairs:
            # Copies, as they are cut in place.
            first, second = (tokenizers.Encoding.merge([encodings[text]]) for text in pair)
            shorter, longer = sorted((first, second), key=len)
            if cut and len(shorter) + len(longer) > room:
                shorter.truncate(min(len(shorter), max(room // 2, 0)))
                longer.truncate(max(room - len(shorter), 0))
            whole = self._backend.post_process(first, second, add_special_tokens=True)
            types = whole.type_ids
            found.append((whole.ids, types.index(1) if 1 in types else len(types)))
        return found

    def _encode_most(self, text: str, most: int) -> tokenizers.Encoding:
        """The first tokens of a text, one more than `most` of them, without special ones."""
        with _panics_refused():
            encoding = self._backend.encode(text, add_special_tokens=False)
        encoding.truncate(most + 1)
        return encoding

    def least_tokens(self, text: str, limit: int) -> int:
        """A lower bound of the tokens in `text`; exact enough only to tell if it exceeds `limit`.

        It costs about as much as encoding `limit` tokens, however long the text is.
        """
        if self.longest_token is not None:
            by_size = len(text.encode()) // self.longest_token
            if by_size > limit:
                return by_size
        least = 0
        for start in range(0, len(text), _PIECE):
            piece = text[start : start + _PIECE]
            with _panics_refused():
                tokens = len(self._backend.encode(piece, add_special_tokens=False))
            least += max(tokens - _CUT, 0)
            if least > limit:
                break
        return least

    def encode_spans(self, texts: Sequence[str]) -> list[Encoded | InvalidRequestError]:
        """The tokens of each rendered text, or why it cannot be read."""
        try:
            with _panics_refused():
                encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        except InvalidRequestError as error:
            if len(texts) == 1:
                return [error]
            return [found for text in texts for found in self.encode_spans([text])]
        return [(encoding.ids, encoding.offsets) for encoding in encodings]

    def decode(self, ids: list[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `ids`."""
        text: str = self._backend.decode(ids, skip_special_tokens=skip_special_tokens)
        return text

    def token_text(self, token_id: int) -> str:
        """The token as text; bytes that are no whole characters show as replacement characters."""
        return self.token_bytes(token_id).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes a token stands for; none for ids that only pad the model's vocabulary."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._compute_bytes(token_id)
        return known

    def _compute_bytes(self, token_id: int) -> bytes:
        token = self._backend.id_to_token(token_id)
        if token is None:
            return b""
        if token_id in self._added:
            return self._added[token_id].encode()
        if self._byte_level and all(letter in _ALPHABET for letter in token):
            return bytes(_ALPHABET[letter] for letter in token)
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes([int(token[3:5], 16)])
        return token.replace(_SPACE, " ").encode()

    def _longest_token(self) -> int | None:
        parts = _parts(self._backend.normalizer, "normalizers")
        added = self._backend.get_added_tokens_decoder().values()
        swallows = any(token.lstrip or token.rstrip for token in added)
        if swallows or not {part["type"] for part in parts} <= _KEEPING:
            return None
        shrinking = [p for p in parts if p["type"] == "Replace" and not _widens(p)]
        if shrinking:
            return None
        composed = any(part["type"] == "NFC" for part in parts)
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        # In the byte alphabet a letter is a byte; elsewhere a character has up to four.
        longest = max((len(token) for token in vocabulary), default=1)
        return longest * (1 if self._byte_level else 4) * (_COMPOSITION if composed else 1)


def read_tokenizer_json(directory: Path) -> str:
    """The text of a tokenizer.json of the vocabulary of a model's directory or GGUF file.

    Without limits and padding left over in it. Raises ModelError naming the file at fault.
    """
    if is_gguf(directory):
        return Tokenizer.load(directory).to_json()
    path, content = _read(directory)
    try:
        state = json.loads(content)
        if state.get("truncation") is None and state.get("padding") is None:
            return content.decode()
    except (AttributeError, RecursionError, ValueError) as error:
        raise ModelError(f"{path} is not a tokenizer: {error}") from None
    return json.dumps(state | {"truncation": None, "padding": None})


def _read(directory: Path) -> tuple[Path, bytes]:
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise ModelError(
            f"{path} does not exist: save the model's fast tokenizer next to its weights"
        )
    return path, read_regular(path, _LARGEST).removeprefix(codecs.BOM_UTF8)


def _parts(component: Any, key: str) -> list[dict[str, Any]]:
    """A decoder or normalizer as a flat list of its steps' settings.

    Serializing the component alone leaves the vocabulary out, which would take most of a second.
    """
    if component is None:
        return []
    state: dict[str, Any] = json.loads(component.__getstate__())
    waiting, found = [state], []
    while waiting:
        part = waiting.pop(0)
        waiting = part[key] + waiting if part["type"] == "Sequence" else waiting
        found += [] if part["type"] == "Sequence" else [part]
    return found


def _joins(part: dict[str, Any]) -> bool:
    """Whether a decoder's step leaves tokens as they are, but for spaces and their stand-ins."""
    if part["type"] == "Replace":
        return bool(part["pattern"] == {"String": _SPACE} and part["content"] == " ")
    if part["type"] == "Strip":
        return bool(part["content"] == " " and part["stop"] == 0)
    return True


def _leading_spaces(part: dict[str, Any]) -> int:
    if part["type"] == "Strip":
        return int(part["start"])
    return int(part["type"] == "Metaspace" and part.get("prepend_scheme") != "never")


def _widens(part: dict[str, Any]) -> bool:
    """Whether a normalizer's replacement is never shorter than what it replaces."""
    pattern = part["pattern"].get("String")
    return pattern is not None and len(part["content"].encode()) >= len(pattern.encode())


@contextmanager
def _panics_refused() -> Iterator[None]:
    """Raises InvalidRequestError where the library gives a text up, which is no Exception."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise InvalidRequestError(f"The model's tokenizer cannot read this text: {error}") from None


def _probe_patterns(backend: tokenizers.Tokenizer, path: Path) -> None:
    """Raises ModelError for a regular expression that makes some texts take forever."""
    components = (backend.normalizer, backend.pre_tokenizer, backend.decoder)
    states = [json.loads(part.__getstate__()) for part in components if part is not None]
    unknown = sorted(set(_patterns(states)) - _KNOWN_PATTERNS)
    if not unknown:
        return
    try:
        shared_sandbox().call("hagane.text.pattern_probe:probe", unknown)
    except SandboxError as error:
        raise ModelError(
            f"{path}: a regular expression of its pre_tokenizer or normalizer cannot be used: "
            f"{error}"
        ) from None


def _patterns(state: Any) -> Iterator[str]:
    """Every regular expression in a component's settings."""
    waiting = [state]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            if isinstance(pattern := part.get("Regex"), str):
                yield pattern
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)
