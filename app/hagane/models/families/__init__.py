"""The model families: their `config.json` as a `ModelConfig`.

A family is a function from the keys that were read to a `ModelConfig`, and a line in `FAMILIES`:

    config = read_config_file(directory)        "architectures" decides which family reads it
    config.norms, config.layer_specs[0].window  the model never asks which family it is
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from hagane.models.config import CONFIG_FILE, ModelConfig
from hagane.models.families import (
    deepseek,
    exaone,
    gemma,
    glm,
    gpt,
    gpt_oss,
    granite,
    llama,
    llama4,
    mixtral,
    multimodal,
    olmo,
    others,
    others_moe,
    phi,
    qwen_moe,
    renamed,
    smollm,
    stablelm,
    starcoder,
)
from hagane.models.families.keys import Found, Keys
from hagane.models.families.undeclared import undeclared
from hagane.models.stored import CONFIG_KEY, OWN_FILES, stored_format
from hagane.system.errors import ModelError
from hagane.system.files import read_json_object
from hagane.system.shapes import shaped


@dataclass(frozen=True)
class Family:
    """`declare` turns `keys` of `config.json` into a configuration; `models` are for people."""

    models: str
    model_type: str
    keys: type[msgspec.Struct]
    declare: Callable[[Found[Any]], ModelConfig]


FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": Family("Llama 2, 3; SmolLM 1, 2; Falcon 3; Yi", "llama", Keys, llama.llama),
    "MistralForCausalLM": Family("Mistral", "mistral", Keys, llama.windowed),
    "MinistralForCausalLM": Family("Ministral", "ministral", Keys, llama.windowed),
    "Qwen2ForCausalLM": Family("Qwen 1.5, 2, 2.5", "qwen2", llama.QwenKeys, llama.qwen2),
    "Qwen3ForCausalLM": Family("Qwen 3", "qwen3", llama.QwenKeys, llama.qwen3),
    "GemmaForCausalLM": Family("Gemma 1", "gemma", gemma.GemmaKeys, gemma.gemma),
    "Gemma2ForCausalLM": Family("Gemma 2", "gemma2", gemma.Gemma2Keys, gemma.gemma2),
    "Gemma3ForCausalLM": Family("Gemma 3 text", "gemma3_text", gemma.Gemma3Keys, gemma.gemma3),
    "Phi3ForCausalLM": Family("Phi-3, 3.5, 4", "phi3", phi.Phi3Keys, phi.phi3),
    "InternLM2ForCausalLM": Family("InternLM 2", "llama", renamed.InternKeys, renamed.internlm2),
    "InternLM3ForCausalLM": Family("InternLM 3", "llama", renamed.InternKeys, renamed.internlm3),
    "BaichuanForCausalLM": Family(
        "Baichuan 2 7B", "llama", renamed.BaichuanKeys, renamed.baichuan2
    ),
    "ExaoneForCausalLM": Family("EXAONE 3, 3.5", "llama", renamed.ExaoneKeys, renamed.exaone),
    "HunYuanDenseV1ForCausalLM": Family(
        "Hunyuan (dense)", "hunyuan_v1_dense", Keys, others.hunyuan
    ),
    "GPT2LMHeadModel": Family("GPT-2", "gpt2", gpt.Gpt2Keys, gpt.gpt2),
    "GPTNeoXForCausalLM": Family("GPT-NeoX, Pythia", "gpt_neox", gpt.NeoxKeys, gpt.gpt_neox),
    "OlmoForCausalLM": Family("OLMo 1", "olmo", olmo.Olmo1Keys, olmo.olmo1),
    "Olmo2ForCausalLM": Family("OLMo 2", "olmo2", olmo.OlmoKeys, olmo.olmo2),
    "Olmo3ForCausalLM": Family("OLMo 3", "olmo3", olmo.Olmo3Keys, olmo.olmo3),
    "GraniteForCausalLM": Family("Granite 3", "granite", granite.GraniteKeys, granite.granite),
    "GraniteMoeHybridForCausalLM": Family(
        "Granite 4 without state spaces",
        "granitemoehybrid",
        granite.GraniteHybridKeys,
        granite.granite_hybrid,
    ),
    "SmolLM3ForCausalLM": Family("SmolLM 3", "smollm3", smollm.SmolLM3Keys, smollm.smollm3),
    "GlmForCausalLM": Family("GLM-4 9B (2024)", "glm", glm.GlmKeys, glm.glm),
    "Glm4ForCausalLM": Family("GLM-4 (2025)", "glm4", glm.GlmKeys, glm.glm4),
    "Starcoder2ForCausalLM": Family(
        "StarCoder2", "starcoder2", starcoder.Starcoder2Keys, starcoder.starcoder2
    ),
    "StableLmForCausalLM": Family(
        "StableLM 1, 2", "stablelm", stablelm.StableLmKeys, stablelm.stablelm
    ),
    "Exaone4ForCausalLM": Family("EXAONE 4", "exaone4", exaone.Exaone4Keys, exaone.exaone4),
    "SeedOssForCausalLM": Family("Seed-OSS", "seed_oss", others.SeedKeys, others.seed_oss),
    "Ernie4_5ForCausalLM": Family("ERNIE 4.5", "ernie4_5", others.ErnieKeys, others.ernie),
    "HeliumForCausalLM": Family("Helium", "helium", Keys, others.helium),
    "Llama4ForCausalLM": Family("Llama 4 text", "llama4_text", llama4.Llama4Keys, llama4.llama4),
    "Gemma3ForConditionalGeneration": Family(
        "Gemma 3, its text model", "gemma3_text", multimodal.TextKeys, multimodal.gemma3_text
    ),
    "Llama4ForConditionalGeneration": Family(
        "Llama 4, its text model", "llama4_text", multimodal.TextKeys, multimodal.llama4_text
    ),
    "Mistral3ForConditionalGeneration": Family(
        "Mistral Small 3.1, its text model",
        "mistral",
        multimodal.TextKeys,
        multimodal.mistral3_text,
    ),
    "MixtralForCausalLM": Family("Mixtral", "mixtral", mixtral.MixtralKeys, mixtral.mixtral),
    "PhimoeForCausalLM": Family("Phi-3.5-MoE", "phimoe", phi.PhimoeKeys, phi.phimoe),
    # As its repository has it.
    "PhiMoEForCausalLM": Family("Phi-3.5-MoE", "phimoe", phi.PhimoeKeys, phi.phimoe),
    "DeepseekV2ForCausalLM": Family(
        "DeepSeek V2", "deepseek_v2", deepseek.DeepseekKeys, deepseek.deepseek_v2
    ),
    "DeepseekV3ForCausalLM": Family(
        "DeepSeek V3, R1; Moonlight", "deepseek_v3", deepseek.DeepseekV3Keys, deepseek.deepseek_v3
    ),
    "GptOssForCausalLM": Family("gpt-oss", "gpt_oss", gpt_oss.GptOssKeys, gpt_oss.gpt_oss),
    "Qwen2MoeForCausalLM": Family(
        "Qwen 1.5, 2 MoE", "qwen2_moe", qwen_moe.Qwen2MoeKeys, qwen_moe.qwen2_moe
    ),
    "Qwen3MoeForCausalLM": Family(
        "Qwen 3 MoE", "qwen3_moe", qwen_moe.QwenMoeKeys, qwen_moe.qwen3_moe
    ),
    "OlmoeForCausalLM": Family("OLMoE", "olmoe", others_moe.OlmoeKeys, others_moe.olmoe),
    "GraniteMoeForCausalLM": Family(
        "Granite 3 MoE", "granitemoe", others_moe.GraniteMoeKeys, others_moe.granite_moe
    ),
    "GraniteMoeSharedForCausalLM": Family(
        "Granite 3 MoE, shared",
        "granitemoeshared",
        others_moe.GraniteMoeKeys,
        others_moe.granite_moe,
    ),
    "Glm4MoeForCausalLM": Family(
        "GLM-4.5", "glm4_moe", others_moe.Glm4MoeKeys, others_moe.glm4_moe
    ),
    "Ernie4_5_MoeForCausalLM": Family(
        "ERNIE 4.5 MoE", "ernie4_5_moe", others_moe.ErnieMoeKeys, others_moe.ernie_moe
    ),
}


def read_config(raw: Mapping[str, Any], *, source: str = CONFIG_FILE) -> ModelConfig:
    """The configuration in a decoded `config.json`, which errors call `source`.

    Raises ModelError naming the key that is missing, malformed or not supported.
    """
    names = raw.get("architectures")
    name = names[0] if isinstance(names, list) and len(names) == 1 else None
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is None:
        return undeclared(raw, name, source, ", ".join(FAMILIES))
    config = family.declare(Found(shaped(raw, family.keys, source), raw, source))
    stored = stored_format(raw, source)
    # Kernels have no float16, in which other programs compute.
    narrow = stored is not None and config.dtype == "float16"
    dtype = "bfloat16" if narrow else config.dtype
    return replace(config, model_type=family.model_type, stored=stored, dtype=dtype)


def read_config_file(directory: Path) -> ModelConfig:
    """Read `directory/config.json`. Raises ModelError naming the file and the key."""
    path = directory / CONFIG_FILE
    if not path.exists():
        raise ModelError(f"{path} does not exist: a model is a directory in Hugging Face layout")
    return read_config(_with_quantization(directory, read_json_object(path)), source=str(path))


def _with_quantization(directory: Path, raw: dict[str, Any]) -> dict[str, Any]:
    """`config.json` with what older quantized checkpoints say in a file of its own."""
    for name, method in OWN_FILES.items():
        if CONFIG_KEY not in raw and (directory / name).is_file():
            own = read_json_object(directory / name)
            return {**raw, CONFIG_KEY: {"quant_method": method, **own}}
    return raw
