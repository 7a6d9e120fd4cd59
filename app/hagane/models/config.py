"""A model's shape and arithmetic, in one vocabulary for all families.

`config.json` is read by the families (`hagane.models.families`). Everything the forward pass needs
is a plain value here, so the model never asks which family it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from hagane.models.layouts import Layout
from hagane.models.rope_parameters import RopeParameters
from hagane.models.stored import StoredFormat
from hagane.system.weight_formats import WEIGHT_FORMATS, FormatName

CONFIG_FILE = "config.json"
DTYPES = ("float32", "bfloat16", "float16")

JointKind = Literal["alternating", "halves"]
Activation = Literal["silu", "gelu", "gelu_tanh", "clamped"]


@dataclass(frozen=True)
class Quantization:
    """How weights are stored, and for int4 how many inputs share a scale (32, 64 or 128).

    `rotated` weights of int8 and int4 are quantized after a rotation of their inputs.
    `eight_bits` are the projections of an int4 model that have 8 bits: `self_attn.o_proj` in all
    layers, `layers.2.mlp.down_proj` in one.
    `measured_loss` is the loss that quantization adds on sample text, relative to the unquantized
    model's; None if it was not measured.
    """

    format: FormatName
    group_size: int = 32
    rotated: bool = False
    eight_bits: tuple[str, ...] = ()
    measured_loss: float | None = field(default=None, compare=False)

    def has_eight_bits(self, layer: int, path: str) -> bool:
        """Whether the projection at `path` in a layer has 8 bits in a model of 4."""
        return path in self.eight_bits or f"layers.{layer}.{path}" in self.eight_bits

    @classmethod
    def choose(cls, name: str, *, cpu: bool, group_size: int = 32) -> Quantization:
        """Of unquantized weights for use on a CPU or a GPU.

        A GPU would spend more on rotating a few rows than on their product.
        """
        return cls(name, group_size, rotated=cpu and WEIGHT_FORMATS[name].integer)


@dataclass(frozen=True)
class Routing:
    """How a router's scores of the experts become the weights of the `chosen` ones.

    The best by score are chosen, or by score plus the expert's correction, of those `chosen_groups`
    of `groups` equal groups whose `group_best` best experts have the largest sum. The weights are
    the scores, divided by their sum (at least `floor`) if `normalised`, times `scale`.
    With a `jitter` the weight of each is its share among those left that are nearly as good
    (SparseMixer), times `scale`.
    """

    chosen: int
    score: Literal["softmax", "sigmoid"] = "softmax"
    normalised: bool = True
    floor: float = 1e-20
    scale: float = 1.0
    groups: int = 1
    chosen_groups: int = 1
    group_best: int = 2
    jitter: float = 0.0


@dataclass(frozen=True)
class ExpertNames:
    """What checkpoints call the matrices of a mixture, within a layer; `{}` is an expert's number.

    `experts` and `shared` are gate, up and down projection; gate and up of one name are one matrix.
    `stacked`: the experts' matrices are one tensor [experts, rows, columns], without a number.
    `joint`: gate and up of all experts are one tensor [experts, hidden, 2 * features], where they
    alternate or are the "halves", and down is [experts, features, hidden].
    `correction` is a tensor's whole name, of `correction_dims` dimensions.
    """

    router: str = "mlp.gate"
    experts: tuple[str, str, str] = (
        "mlp.experts.{}.gate_proj",
        "mlp.experts.{}.up_proj",
        "mlp.experts.{}.down_proj",
    )
    shared: tuple[str, str, str] = (
        "mlp.shared_experts.gate_proj",
        "mlp.shared_experts.up_proj",
        "mlp.shared_experts.down_proj",
    )
    shared_gate: str = "mlp.shared_expert_gate"
    correction: str = "mlp.gate.e_score_correction_bias"
    correction_dims: int = 1
    stacked: bool = False
    joint: JointKind | None = None


@dataclass(frozen=True)
class ExpertsSpec:
    """A mixture of experts: `count` MLPs, of which a router chooses some for each token.

    `features` is the inner width of each, `shared` that of one more, which every token has; 0:
    none. `shared_gate`: its result is multiplied by the sigmoid of a score. `corrected`: experts
    are chosen by scores to which a correction of each is added. `router_bias` and `bias`: the
    router and the experts have biases. `weighted_inputs`: weights multiply what the one chosen
    expert reads, not what it gives.
    """

    count: int
    features: int
    routing: Routing
    shared: int = 0
    shared_gate: bool = False
    corrected: bool = False
    router_bias: bool = False
    bias: bool = False
    weighted_inputs: bool = False
    names: ExpertNames = ExpertNames()


@dataclass(frozen=True)
class Temperature:
    """Queries are multiplied by 1 + `scale` * log(1 + floor((position + 1) / `floor`)).

    Nakanishi, 2025, arXiv:2501.19399: with many keys attention would fade.
    """

    scale: float
    floor: float


@dataclass(frozen=True)
class LayerSpec:
    """The properties that may differ between the layers of a model.

    `window` is the number of most recent tokens that a token sees, itself included; None: all.
    `rope` turns queries and keys by their positions; None: attention does not know positions.
    `experts` are in the place of the MLP; None: an MLP. `temperature` scales queries; None: not.
    """

    window: int | None = None
    rope: RopeParameters | None = None
    experts: ExpertsSpec | None = None
    temperature: Temperature | None = None


@dataclass(frozen=True)
class LatentSpec:
    """Latent attention: keys and values come out of a vector of `rank` features.

    Queries do so from one of `query_rank`; 0: from the token itself. `values` is the width of a
    head's value; keys and queries are wider by what knows positions.
    """

    rank: int
    query_rank: int
    values: int


@dataclass(frozen=True)
class CacheSpec:
    """One layer's cache of a token: a key and a value of each head.

    `shared`: a value is the beginning of its key, and stored with it.
    """

    kv_heads: int
    head_dim: int
    shared: bool = False

    def bytes_of_token(self, item: int, scale: int) -> int:
        """For numbers of `item` bytes, and `scale` more for a key and for a value."""
        return (1 if self.shared else 2) * self.kv_heads * (self.head_dim * item + scale)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape and arithmetic of a decoder; sizes are counts of features, heads, tokens or layers.

    A layer is x += attention(norm(x)); x += mlp(norm(x)), where the fields do not say otherwise:

    - `norm` "layer" subtracts the mean, too; `norm_offset` is added to the stored weights. Without
      `norm_weights` nothing is multiplied.
    - `norms` "after" normalises what a block adds to x instead of its input, "around" both.
      "parallel" gives both blocks the same x, "shared" the same norm of it.
    - `qk_norm` normalises queries and keys by "head", or all heads together ("width"), or by head
      once they are turned ("turned"), or by head without weights where they are turned ("unit").
      `qkv_clip` bounds them and values before; 0 does not.
    - `position_embeddings` are added to embeddings.
    - `latent` attention makes `head_dim` features of a key, of which those the rope turns come last
      and are those of all heads; there are as many key as query heads.
    - `sinks` take part in the softmax of every head.
    - `gated` multiplies the activation of one projection with another one.
    - `attention_scale` multiplies the scores, None is 1 / sqrt(head_dim); `attention_cap` and
      `logit_cap` bound scores and logits to cap * tanh(x / cap), 0 does not.
    - `embedding_scale`, `residual_scale` and `logit_scale` multiply embeddings, what a block adds,
      and logits.

    `fused` are projections that checkpoints store as one matrix. `names` has the names in
    checkpoints of modules that are not called as in Llama; `layout` says more of checkpoints that
    differ in more. `unused` are beginnings of the names of
    tensors that checkpoints have besides the model. `dtype` is the dtype the model asks to be run
    in. `stored` is the format of a checkpoint that another program quantized. `raw` is the
    `config.json` that was read. Where the family is not `declared`, transformers' code runs the
    model, and sizes alone are known.
    """

    architecture: str
    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rope: RopeParameters
    layer_specs: tuple[LayerSpec, ...]
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-6
    norm_offset: float = 0.0
    norm_bias: bool = False
    norm_weights: bool = True
    norms: Literal["before", "after", "around", "parallel", "shared"] = "before"
    qk_norm: Literal["head", "width", "turned", "unit"] | None = None
    qkv_clip: float = 0.0
    position_embeddings: bool = False
    latent: LatentSpec | None = None
    sinks: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    activation: Activation = "silu"
    gated: bool = True
    attention_scale: float | None = None
    attention_cap: float = 0.0
    logit_cap: float = 0.0
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    fused: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    layout: Layout | None = None
    unused: tuple[str, ...] = ()
    tie_word_embeddings: bool = False
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    dtype: str = "float32"
    quantization: Quantization | None = None
    stored: StoredFormat | None = None
    declared: bool = True
    raw: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def mixed(self) -> bool:
        """Whether any layer is a mixture of experts."""
        return any(spec.experts for spec in self.layer_specs)

    @property
    def plain(self) -> bool:
        """Whether the arithmetic is Llama's, which every backend has in single passes."""
        same = self.norm == "rms" and self.norms == "before" and self.activation == "silu"
        ones = self.embedding_scale, self.residual_scale, self.logit_scale
        zeros = self.norm_offset, self.attention_cap, self.logit_cap, self.qkv_clip
        whole = self.rope.rotated == self.head_dim and not self.rope.interleaved
        per_head = self.qk_norm in (None, "head") and self.attention_scale is None
        rotated = all(spec.rope for spec in self.layer_specs)
        unscaled = all(factor == 1 for factor in ones) and not any(zeros)
        dense = self.gated and not self.mixed and not self.head_bias
        seen = self.latent is None and not self.sinks
        return (
            self.declared
            and same
            and dense
            and seen
            and whole
            and per_head
            and rotated
            and unscaled
        )

    def to_dict(self) -> dict[str, Any]:
        """The Hugging Face `config.json` of this model (unquantized), loadable by transformers."""
        config: dict[str, Any] = {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "head_dim": self.head_dim,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": self.norm_eps,
            "hidden_act": "silu",
            "bos_token_id": self.bos_token_id,
            "eos_token_id": list(self.eos_token_ids) or None,
            **(self.rope.to_dict() if self.rope.kind != "longrope" else {}),
            **self.raw,
            "tie_word_embeddings": self.tie_word_embeddings,
            "torch_dtype": self.dtype,
        }
        for key in ("dtype", "quantization_config", "compression_config"):
            config.pop(key, None)
        return config
