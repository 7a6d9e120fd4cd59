"""Builds the tokenizer that a GGUF file describes.

A file holds a vocabulary, its merges or scores, and names for the rest; what Hugging Face keeps
as `tokenizer.json` and `tokenizer_config.json` is made of them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from hagane.system.errors import ModelError
from hagane.text.pre_tokenizers import BEGINNING, IGNORING_MERGES, PATTERNS, byte_level
from hagane.weights.sources.gguf.eos import CONTROL, UNKNOWN, USER_DEFINED
from hagane.weights.sources.gguf.file import GGUFFile, shard_paths

_SPACE = "\u2581"
_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
# Pre-tokenizers of models whose own tokenizer composes characters first.
_COMPOSING = frozenset({"qwen2", "deepseek-r1-qwen", "megrez", "kormo"})
_BYTES = 6


class StoredVocabulary:
    """The tokens that a file declares. Raises ModelError naming the key at fault."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        self.tokens: list[str] = self._strings("tokens")
        if not self.tokens:
            raise file.error("has no tokenizer.ggml.tokens: it holds no vocabulary")
        self.kinds: list[int] = self._numbers("token_type") or [1] * len(self.tokens)

    def get(self, key: str) -> Any:
        return self.file.get(f"tokenizer.ggml.{key}")

    def text(self, key: str, default: str) -> str:
        value = self.get(key)
        value = default if value is None else value
        if not isinstance(value, str):
            raise self.file.error(f"has no text in tokenizer.ggml.{key}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key)
        return default if value is None else bool(value)

    def merges(self) -> list[str]:
        return self._strings("merges")

    def scores(self) -> list[float]:
        return self._numbers("scores") or [0.0] * len(self.tokens)

    def ids(self) -> dict[str, int]:
        """Ids by token; of equal tokens, the first one's."""
        found = {}
        for i in range(len(self.tokens) - 1, -1, -1):
            found[self.tokens[i]] = i
        return found

    def token(self, key: str) -> str | None:
        """The token whose id is `tokenizer.ggml.KEY_token_id`."""
        value = self.get(f"{key}_token_id")
        if key == "bos" and value is None:
            value = self.get("cls_token_id")
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value >= len(self.tokens):
            raise self.file.error(
                f"has the tokenizer.ggml.{key}_token_id {value!r}, outside its vocabulary"
            )
        return self.tokens[value] if value >= 0 else None

    def _strings(self, key: str) -> list[str]:
        value = self.get(key)
        if value is not None and not isinstance(value, list):
            raise self.file.error(f"has no list of texts in tokenizer.ggml.{key}")
        return value or []

    def _numbers(self, key: str) -> list[Any]:
        value = self.get(key)
        if value is None:
            return []
        if isinstance(value, str | list | int | float) or len(value) != len(self.tokens):
            raise self.file.error(
                f"has no list of {len(self.tokens)} numbers in tokenizer.ggml.{key}"
            )
        numbers: list[Any] = value.tolist()
        return numbers


def load_gguf_tokenizer(path: Path) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """The tokenizer of a GGUF file, and its settings as `tokenizer_config.json` has them.

    Raises ModelError naming the file and what is missing, malformed or not supported in it.
    """
    file = GGUFFile(shard_paths(path)[0])
    vocabulary = StoredVocabulary(file)
    kind = vocabulary.text("model", "")
    build = _KINDS.get(kind)
    if build is None:
        raise file.error(f"has a tokenizer of kind {kind!r}; read are {', '.join(_KINDS)}")
    try:
        backend = build(vocabulary)
        backend.add_tokens(_added(vocabulary, backend))
    except ModelError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise file.error(f"holds no usable tokenizer: {error}") from None
    return backend, _settings(vocabulary, kind)


def _added(vocabulary: StoredVocabulary, backend: tokenizers.Tokenizer) -> list[AddedToken]:
    """Tokens that are found in text as a whole; control tokens are special, too."""
    return [
        AddedToken(token, normalized=False, special=kind == CONTROL)
        for token, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True)
        # Those that are spelled another way in here are found without this.
        if kind in (CONTROL, USER_DEFINED) and token and backend.token_to_id(token) is not None
    ]


def _settings(vocabulary: StoredVocabulary, kind: str) -> dict[str, Any]:
    named = {name: vocabulary.token(key) for name, key in _SPECIAL.items()}
    beginning = kind == "llama" or vocabulary.text("pre", "default") in BEGINNING
    settings: dict[str, Any] = {
        **{name: token for name, token in named.items() if token is not None},
        "add_bos_token": vocabulary.flag("add_bos_token", beginning) and kind != "bert",
    }
    template = vocabulary.file.get("tokenizer.chat_template")
    if template is not None:
        settings["chat_template"] = template
    return settings


def _byte_level_bpe(vocabulary: StoredVocabulary) -> tokenizers.Tokenizer:
    """GPT-2's kind: bytes written as printable characters, merged by rank."""
    name = vocabulary.text("pre", "default")
    pre_tokenizer = byte_level(name)
    if pre_tokenizer is None:
        raise vocabulary.file.error(
            f"cuts text up by rules called {name!r}; known are {', '.join(sorted(PATTERNS))}"
        )
    merges = []
    for merge in vocabulary.merges():
        left, space, right = merge.partition(" ")
        if not (left and space and right):
            raise vocabulary.file.error(f"has the merge {merge!r}, which is not two tokens")
        merges.append((left, right))
    backend = tokenizers.Tokenizer(
        models.BPE(vocabulary.ids(), merges, ignore_merges=name in IGNORING_MERGES)
    )
    if name in _COMPOSING:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return backend


def _sentencepiece_bpe(vocabulary: StoredVocabulary) -> tokenizers.Tokenizer:
    """SentencePiece's BPE (Kudo and Richardson, 2018): merges follow from the tokens' scores."""
    ids, unknown = vocabulary.ids(), vocabulary.token("unknown")
    # Runs of spaces are stored as such, and looked up as what stands for them.
    for token in [token for token in ids if token.isspace() and set(token) == {" "}]:
        ids.setdefault(_SPACE * len(token), ids.pop(token))
    backend = tokenizers.Tokenizer(
        models.BPE(
            ids,
            _merges_by_score(vocabulary, ids),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefixed = vocabulary.flag("add_space_prefix", True)
    spaces = normalizers.Replace(" ", _SPACE)
    prefix = [normalizers.Prepend(_SPACE)] if prefixed else []
    backend.normalizer = normalizers.Sequence([*prefix, spaces])
    strip = [decoders.Strip(" ", 1, 0)] if prefixed else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return backend


def _merges_by_score(vocabulary: StoredVocabulary, ids: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to make a token of two others, those of the highest score first."""
    scores, kinds = vocabulary.scores(), vocabulary.kinds
    # Gemma's scores say nothing: the order of its tokens is that of the merges.
    ordered = vocabulary.file.get("general.architecture") in ("gemma", "gemma2", "gemma3")
    merges = []
    for token, i in ids.items():
        if len(token) < 2 or kinds[i] == _BYTES:
            continue
        score = -i if ordered else scores[i]
        for cut in range(1, len(token)):
            left, right = ids.get(token[:cut]), ids.get(token[cut:])
            if left is not None and right is not None:
                merges.append((-score, left, right, token[:cut], token[cut:]))
    merges.sort()
    return [(left, right) for *_, left, right in merges]


def _word_pieces(vocabulary: StoredVocabulary) -> tokenizers.Tokenizer:
    """BERT's kind. GGUF marks where words begin, BERT where they go on."""
    ids = {}
    for token, i in vocabulary.ids().items():
        named = vocabulary.kinds[i] in (UNKNOWN, CONTROL)
        if named or (token.startswith("[") and token.endswith("]")):
            ids[token] = i
        elif token.startswith(_SPACE):
            ids[token[1:]] = i
        else:
            ids["##" + token] = i
    unknown = vocabulary.token("unknown") or "[UNK]"
    if unknown not in ids:
        raise vocabulary.file.error(f"has no token {unknown!r} for unknown words")
    first = vocabulary.token("bos") or "[CLS]"
    last = vocabulary.token("seperator") or vocabulary.token("eos") or "[SEP]"
    backend = tokenizers.Tokenizer(models.WordPiece(ids, unk_token=unknown))
    lowercase = vocabulary.flag("normalizer.lowercase", True)
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    if first in ids and last in ids:
        backend.post_processor = processors.BertProcessing((last, ids[last]), (first, ids[first]))
    return backend


def _unigram(vocabulary: StoredVocabulary) -> tokenizers.Tokenizer:
    """SentencePiece's unigram language model (Kudo, 2018), as T5 and XLM-R have it."""
    pieces = list(zip(vocabulary.tokens, vocabulary.scores(), strict=True))
    unknown = vocabulary.token("unknown")
    if unknown is None:
        raise vocabulary.file.error("has no tokenizer.ggml.unknown_token_id")
    backend = tokenizers.Tokenizer(models.Unigram(pieces, vocabulary.get("unknown_token_id")))
    charsmap = vocabulary.get("precompiled_charsmap")
    if charsmap is not None:
        if isinstance(charsmap, str | list | int | float):
            raise vocabulary.file.error("has no bytes in tokenizer.ggml.precompiled_charsmap")
        backend.normalizer = normalizers.Precompiled(charsmap.tobytes())
    spaces = (
        [pre_tokenizers.WhitespaceSplit()]
        if vocabulary.flag("remove_extra_whitespaces", False)
        else []
    )
    scheme = "always" if vocabulary.flag("add_space_prefix", True) else "never"
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [*spaces, pre_tokenizers.Metaspace(_SPACE, scheme)]
    )
    backend.decoder = decoders.Metaspace(_SPACE, scheme)
    eos = vocabulary.token("eos")
    if eos is not None and vocabulary.flag("add_eos_token", True):
        backend.post_processor = processors.TemplateProcessing(
            single=f"$A {eos}", special_tokens=[(eos, vocabulary.ids()[eos])]
        )
    return backend


_KINDS: dict[str, Callable[[StoredVocabulary], tokenizers.Tokenizer]] = {
    "gpt2": _byte_level_bpe,
    "llama": _sentencepiece_bpe,
    "bert": _word_pieces,
    "t5": _unigram,
}
