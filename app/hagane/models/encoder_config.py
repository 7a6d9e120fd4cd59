"""The `config.json` of an encoder: BERT, RoBERTa and ModernBERT, as embedding models are made of.

Rerankers are made of the first two. Gemma 3 is one where it sees texts in both directions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from hagane.models.config import CONFIG_FILE, ModelConfig
from hagane.models.families import read_config
from hagane.models.layouts import Layout
from hagane.system.errors import ModelError
from hagane.system.files import read_json_object
from hagane.system.shapes import shaped

Scale = Literal["sigmoid", "identity"]

# Checkpoints of language models keep the encoder below a name of its own.
ARCHITECTURES = {
    "BertModel": "",
    "BertForMaskedLM": "bert.",
    "BertForSequenceClassification": "bert.",
    "RobertaModel": "",
    "RobertaForMaskedLM": "roberta.",
    "RobertaForSequenceClassification": "roberta.",
    "XLMRobertaModel": "",
    "XLMRobertaForMaskedLM": "roberta.",
    "XLMRobertaForSequenceClassification": "roberta.",
}
# ModernBERT's; its classifiers are not supported.
MODERN = {"ModernBertModel": "", "ModernBertForMaskedLM": "model."}
# A decoder, if it is trained to see all of a text.
_GEMMA = "Gemma3TextModel"
_BARE = Layout(outer={"model.embed_tokens": "embed_tokens", "model.norm": "norm"}, layer="layers")
# Those of cross-encoders, which score two texts at a time.
_SCORING = "ForSequenceClassification"
# What sentence-transformers makes of a score; transformers has two labels where none are named.
_SCALES: dict[str, Scale] = {
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
    "torch.nn.modules.linear.Identity": "identity",
}
_LABELS = {"0": "LABEL_0", "1": "LABEL_1"}
# Of sentence-transformers, which cuts longer texts: the model was trained on none.
_TEXTS_FILE = "sentence_bert_config.json"
_Size = Annotated[int, Meta(ge=1, le=1 << 24)]


class _Texts(msgspec.Struct, frozen=True):
    max_seq_length: _Size | None = None


class _CrossEncoder(msgspec.Struct, frozen=True):
    """What sentence-transformers adds to a cross-encoder's configuration."""

    activation_fn: str | None = None


class _StoredEncoder(msgspec.Struct, frozen=True):
    """The keys that are read."""

    vocab_size: _Size
    hidden_size: _Size
    intermediate_size: _Size
    num_hidden_layers: Annotated[int, Meta(ge=1, le=4096)]
    num_attention_heads: _Size
    max_position_embeddings: _Size
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    type_vocab_size: _Size = 2
    pad_token_id: int = 0
    position_embedding_type: str = "absolute"
    id2label: dict[str, str] = msgspec.field(default_factory=lambda: dict(_LABELS))
    sentence_transformers: _CrossEncoder | None = None
    # Its older name.
    sbert_ce_default_activation_function: str | None = None


class _Theta(msgspec.Struct, frozen=True):
    rope_type: Literal["default"] = "default"
    rope_theta: float | None = None


class _Rotations(msgspec.Struct, frozen=True):
    full_attention: _Theta = _Theta()
    sliding_attention: _Theta = _Theta()


class _StoredModern(msgspec.Struct, frozen=True):
    """The keys that are read of ModernBERT, whose rotations older files have apart."""

    vocab_size: _Size
    hidden_size: _Size
    intermediate_size: _Size
    num_hidden_layers: Annotated[int, Meta(ge=1, le=4096)]
    num_attention_heads: _Size
    max_position_embeddings: _Size = 8192
    hidden_activation: str = "gelu"
    norm_eps: float = 1e-5
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    local_attention: _Size = 128
    global_attn_every_n_layers: _Size = 3
    layer_types: list[str] | None = None
    global_rope_theta: float = 160000.0
    local_rope_theta: float = 10000.0
    rope_parameters: _Rotations = _Rotations()
    rope_scaling: None = None


@dataclass(frozen=True)
class TurnedSpec:
    """An encoder whose queries and keys are turned by their positions, with norms before blocks.

    Every `full_every`th layer, from the first on, sees all of a text, and has the base `theta`;
    others see `reach` tokens to each side, and have `window_theta`.
    """

    theta: float
    window_theta: float
    reach: int
    full_every: int
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Shape of an encoder. Positions are counted from `first_position`; `prefix` is the name that
    its tensors begin with. A cross-encoder has a head, whose scores have this `scale`. `turned` is
    None where positions are embeddings. `decoder` is the one that it is.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    position_embeddings: int
    first_position: int
    longest_text: int | None
    token_types: int
    norm_eps: float
    activation: Literal["gelu", "gelu_new", "relu"]
    prefix: str
    scale: Scale | None = None
    turned: TurnedSpec | None = None
    decoder: ModelConfig | None = None

    @property
    def max_position_embeddings(self) -> int:
        """The longest text, tokens."""
        positions = self.position_embeddings - self.first_position
        return positions if self.longest_text is None else min(positions, self.longest_text)

    @property
    def marks_second(self) -> bool:
        """Whether the second of two texts has a token type of its own."""
        return self.architecture.startswith("Bert") and self.token_types > 1

    @classmethod
    def find(cls, directory: Path) -> EncoderConfig | None:
        """That of the model in `directory`; None if it is no encoder. Raises ModelError."""
        path = directory / CONFIG_FILE
        if not path.is_file():
            return None
        raw = read_json_object(path)
        names = raw.get("architectures")
        names = names if isinstance(names, list) else []
        if names == [_GEMMA] and raw.get("use_bidirectional_attention"):
            return _gemma(raw, path)
        if modern := [n for n in names if n in MODERN]:
            return _modern(modern[0], shaped(raw, _StoredModern, str(path)), path)
        known = [n for n in names if n in ARCHITECTURES]
        if not known:
            return None
        stored = shaped(raw, _StoredEncoder, str(path))
        if stored.hidden_size % stored.num_attention_heads:
            raise ModelError(f"{path}: hidden_size is no multiple of num_attention_heads")
        if stored.hidden_act not in ("gelu", "gelu_new", "relu"):
            raise ModelError(f"{path}: hidden_act {stored.hidden_act!r} is not supported")
        if stored.position_embedding_type != "absolute":
            raise ModelError(
                f"{path}: position_embedding_type {stored.position_embedding_type!r} is not "
                "supported"
            )
        shifted = "Roberta" in known[0]
        return cls(
            architecture=known[0],
            vocab_size=stored.vocab_size,
            hidden_size=stored.hidden_size,
            intermediate_size=stored.intermediate_size,
            layers=stored.num_hidden_layers,
            heads=stored.num_attention_heads,
            position_embeddings=stored.max_position_embeddings,
            first_position=stored.pad_token_id + 1 if shifted else 0,
            longest_text=_longest_text(directory / _TEXTS_FILE),
            token_types=stored.type_vocab_size,
            norm_eps=stored.layer_norm_eps,
            activation=stored.hidden_act,  # type: ignore[arg-type]
            prefix=ARCHITECTURES[known[0]],
            scale=_scale(stored, path) if known[0].endswith(_SCORING) else None,
        )


def _gemma(raw: dict[str, Any], path: Path) -> EncoderConfig:
    found = read_config({**raw, "architectures": ["Gemma3ForCausalLM"]}, source=str(path))
    # The stored window is that of both sides together.
    specs = tuple(
        replace(spec, window=spec.window // 2 + 1 if spec.window else None)
        for spec in found.layer_specs
    )
    return EncoderConfig(
        architecture=_GEMMA,
        vocab_size=found.vocab_size,
        hidden_size=found.hidden_size,
        intermediate_size=found.intermediate_size,
        layers=found.layers,
        heads=found.heads,
        position_embeddings=found.max_position_embeddings,
        first_position=0,
        longest_text=_longest_text(path.parent / _TEXTS_FILE),
        token_types=1,
        norm_eps=found.norm_eps,
        activation="gelu",
        prefix="",
        decoder=replace(found, layer_specs=specs, layout=_BARE, tie_word_embeddings=True),
    )


def _modern(architecture: str, stored: _StoredModern, path: Path) -> EncoderConfig:
    if stored.hidden_size % (2 * stored.num_attention_heads):
        raise ModelError(f"{path}: hidden_size does not give heads of an even size")
    if stored.hidden_activation not in ("gelu", "gelu_new", "relu"):
        raise ModelError(f"{path}: hidden_activation {stored.hidden_activation!r} is not supported")
    every, layers = stored.global_attn_every_n_layers, range(stored.num_hidden_layers)
    kinds = ["sliding_attention" if layer % every else "full_attention" for layer in layers]
    if stored.layer_types not in (None, kinds):
        raise ModelError(f"{path}: layer_types other than one of {every} in full are not supported")
    rotations = stored.rope_parameters
    return EncoderConfig(
        architecture=architecture,
        vocab_size=stored.vocab_size,
        hidden_size=stored.hidden_size,
        intermediate_size=stored.intermediate_size,
        layers=stored.num_hidden_layers,
        heads=stored.num_attention_heads,
        position_embeddings=stored.max_position_embeddings,
        first_position=0,
        longest_text=_longest_text(path.parent / _TEXTS_FILE),
        token_types=1,
        norm_eps=stored.norm_eps,
        activation=stored.hidden_activation,  # type: ignore[arg-type]
        prefix=MODERN[architecture],
        turned=TurnedSpec(
            rotations.full_attention.rope_theta or stored.global_rope_theta,
            rotations.sliding_attention.rope_theta or stored.local_rope_theta,
            stored.local_attention // 2,
            every,
            stored.norm_bias,
            stored.attention_bias,
            stored.mlp_bias,
        ),
    )


def _scale(stored: _StoredEncoder, path: Path) -> Scale:
    """The scale of a cross-encoder's scores. Raises ModelError for other classifiers."""
    if len(stored.id2label) != 1:
        raise ModelError(
            f"{path}: a classifier of {len(stored.id2label)} labels is not supported; those with "
            "one score pairs of texts"
        )
    extra = stored.sentence_transformers
    name = (extra and extra.activation_fn) or stored.sbert_ce_default_activation_function
    if name is not None and name not in _SCALES:
        raise ModelError(f"{path}: activation_fn {name!r} is not supported")
    return "sigmoid" if name is None else _SCALES[name]


def _longest_text(path: Path) -> int | None:
    return (
        shaped(read_json_object(path), _Texts, str(path)).max_seq_length if path.exists() else None
    )
