"""What `config.json` says about a model, checked and put into one vocabulary.

`ModelConfig` covers the dense decoder family: Llama 2/3.x and SmolLM, Mistral, Qwen2/2.5, Qwen3.
Everything the forward pass needs is a plain value here, so the model never asks which family it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hagane.models.rope_parameters import RopeParameters
from hagane.system.errors import ModelError
from hagane.system.files import read_json_object
from hagane.system.weight_formats import WEIGHT_FORMATS, FormatName

CONFIG_FILE = "config.json"
SUPPORTED = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
DTYPES = ("float32", "bfloat16", "float16")
# A mistyped number could make a model that takes forever to build.
_MOST_LAYERS, _LARGEST_SIZE = 4096, 1 << 24


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


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape and arithmetic of a decoder; sizes are counts of features, heads, tokens or layers.

    `sliding_windows` has one entry per layer: the number of most recent tokens that a token sees
    (itself included), or None for all of them. `dtype` is the dtype the model asks to be run in.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rope: RopeParameters
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_windows: tuple[int | None, ...] = ()
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    dtype: str = "float32"
    quantization: Quantization | None = None

    @classmethod
    def load(cls, directory: Path) -> ModelConfig:
        """Read `directory/config.json`. Raises ModelError naming the file and the key."""
        path = directory / CONFIG_FILE
        if not path.exists():
            raise ModelError(
                f"{path} does not exist: a model is a directory in Hugging Face layout"
            )
        return cls.from_dict(read_json_object(path), source=str(path))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], *, source: str = CONFIG_FILE) -> ModelConfig:
        """Build from the decoded `config.json`; `source` is named in errors."""
        return _Reader(raw, source).config()

    def to_dict(self) -> dict[str, Any]:
        """The Hugging Face `config.json` of this model (unquantized), loadable by transformers."""
        config: dict[str, Any] = {
            "architectures": [self.architecture],
            "model_type": self.architecture.removesuffix("ForCausalLM").lower(),
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.rms_norm_eps,
            "tie_word_embeddings": self.tie_word_embeddings,
            "hidden_act": "silu",
            "torch_dtype": self.dtype,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": list(self.eos_token_ids) or None,
            **self.rope.to_dict(),
        }
        if self.architecture == "LlamaForCausalLM":
            config |= {"attention_bias": self.qkv_bias, "mlp_bias": self.mlp_bias}
        if any(self.sliding_windows):
            config |= self._sliding_dict()
        return config

    def _sliding_dict(self) -> dict[str, Any]:
        window = next(w for w in self.sliding_windows if w)
        if self.architecture == "MistralForCausalLM":
            return {"sliding_window": window}
        kinds = ["sliding_attention" if w else "full_attention" for w in self.sliding_windows]
        return {"use_sliding_window": True, "sliding_window": window, "layer_types": kinds}


class _Reader:
    """Reads one `config.json`, turning every surprise into a ModelError that names the key."""

    def __init__(self, raw: Mapping[str, Any], source: str) -> None:
        self.raw = raw
        self.source = source

    def fail(self, key: str, problem: str) -> ModelError:
        return ModelError(f"{self.source}: {key} {problem}")

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.raw.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.fail(key, f"must be a positive integer, got {value!r}")
        largest = _MOST_LAYERS if key == "num_hidden_layers" else _LARGEST_SIZE
        if value > largest:
            raise self.fail(key, f"is {value}; at most {largest} is plausible")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.raw.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.fail(key, f"must be true or false, got {value!r}")
        return value

    def architecture(self) -> str:
        names = self.raw.get("architectures") or []
        if not isinstance(names, list) or len(names) != 1 or names[0] not in SUPPORTED:
            raise self.fail("architectures", f"is {names!r}; supported are {', '.join(SUPPORTED)}")
        return str(names[0])

    def config(self) -> ModelConfig:
        architecture = self.architecture()
        if self.raw.get("hidden_act", "silu") != "silu":
            raise self.fail("hidden_act", f"is {self.raw['hidden_act']!r}; only silu is supported")
        hidden, heads = self.integer("hidden_size"), self.integer("num_attention_heads")
        kv_heads = self.integer("num_key_value_heads", heads)
        if heads % kv_heads:
            raise self.fail("num_key_value_heads", f"{kv_heads} does not divide {heads} heads")
        head_dim = self.integer("head_dim", hidden // heads)
        layers = self.integer("num_hidden_layers")
        context = self.integer("max_position_embeddings")
        llama, qwen2 = architecture == "LlamaForCausalLM", architecture == "Qwen2ForCausalLM"
        qwen3 = architecture == "Qwen3ForCausalLM"
        attention_bias = (llama or qwen3) and self.flag("attention_bias")
        return ModelConfig(
            architecture=architecture,
            vocab_size=self.integer("vocab_size"),
            hidden_size=hidden,
            intermediate_size=self.integer("intermediate_size"),
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            max_position_embeddings=context,
            rope=RopeParameters.from_config(self.raw, self.source, head_dim, context),
            rms_norm_eps=self.epsilon(),
            tie_word_embeddings=self.flag("tie_word_embeddings"),
            qkv_bias=qwen2 or attention_bias,
            output_bias=attention_bias,
            mlp_bias=llama and self.flag("mlp_bias"),
            qk_norm=qwen3,
            sliding_windows=self.windows(architecture, layers),
            eos_token_ids=self.token_ids("eos_token_id"),
            bos_token_id=next(iter(self.token_ids("bos_token_id")), None),
            dtype=self.dtype(),
            quantization=self.quantization(),
        )

    def epsilon(self) -> float:
        value = self.raw.get("rms_norm_eps", 1e-6)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
            raise self.fail("rms_norm_eps", f"must be a small positive number, got {value!r}")
        return float(value)

    def windows(self, architecture: str, layers: int) -> tuple[int | None, ...]:
        window = self.raw.get("sliding_window")
        if architecture == "LlamaForCausalLM" or window is None:
            return (None,) * layers
        window = self.integer("sliding_window")
        if architecture == "MistralForCausalLM":
            return (window,) * layers
        if not self.flag("use_sliding_window"):
            return (None,) * layers
        kinds = self.raw.get("layer_types")
        if kinds is None:
            first = self.raw.get("max_window_layers", 28)
            if isinstance(first, bool) or not isinstance(first, int):
                raise self.fail("max_window_layers", f"must be an integer, got {first!r}")
            kinds = ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
        if not isinstance(kinds, list) or len(kinds) != layers:
            raise self.fail("layer_types", f"must name {layers} layers")
        if not all(isinstance(kind, str) for kind in kinds):
            raise self.fail("layer_types", "must be a list of texts")
        if unknown := set(kinds) - {"sliding_attention", "full_attention"}:
            raise self.fail("layer_types", f"has unsupported kinds {sorted(unknown)}")
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)

    def token_ids(self, key: str) -> tuple[int, ...]:
        value = self.raw.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
            raise self.fail(key, f"must be a token id or a list of them, got {value!r}")
        # -1 is how some say "none".
        return tuple(i for i in ids if i >= 0)

    def dtype(self) -> str:
        value = self.raw.get("dtype") or self.raw.get("torch_dtype") or "float32"
        # Old exporters wrote the name with that of its module.
        value = value.removeprefix("torch.") if isinstance(value, str) else value
        if value not in DTYPES:
            raise self.fail("torch_dtype", f"is {value!r}; supported are {', '.join(DTYPES)}")
        return str(value)

    def quantization(self) -> Quantization | None:
        stored = self.raw.get("quantization_config")
        if stored is None:
            return None
        if not isinstance(stored, dict) or stored.get("quant_method") != "hagane":
            method = stored.get("quant_method") if isinstance(stored, dict) else stored
            raise self.fail(
                "quantization_config",
                f"has method {method!r}; only Hagane's own is read: load the unquantized model "
                "and pass --quantize",
            )
        # Directories from before there was fp8 name bits.
        bits = stored.get("bits")
        old = {8: "int8", 4: "int4"}.get(bits) if isinstance(bits, int) else None
        name, group = stored.get("format", old), stored.get("group_size", 64)
        if name not in WEIGHT_FORMATS or group not in (32, 64, 128):
            raise self.fail("quantization_config", f"has format {name!r} and group_size {group!r}")
        turned = stored.get("rotated", False)
        if not isinstance(turned, bool):
            raise self.fail("quantization_config", f"has rotated {turned!r}; true or false is read")
        wide = stored.get("eight_bits", [])
        if not isinstance(wide, list) or not all(isinstance(path, str) for path in wide):
            raise self.fail("quantization_config", f"has eight_bits {wide!r}, not a list of paths")
        loss = stored.get("measured_loss")
        if loss is not None and (isinstance(loss, bool) or not isinstance(loss, int | float)):
            raise self.fail("quantization_config", f"has measured_loss {loss!r}, not a number")
        return Quantization(name, group, turned, tuple(wide), loss)
