"""A tiny model whose template shows tools, and writes calls and reasoning as Hermes and Qwen do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from tests.support.server import Server, start_server

TOOL_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t.function.name }}\n{% endfor %}"
    "<tool_call>\n{...}\n</tool_call><|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING_TEMPLATE = TOOL_TEMPLATE + "{# <think> </think> #}{{ opening }}"
FENCED = '```json\n{"name": "get_weather", "arguments": {"city": "Oslo", "days": true}}\n```\n'


def serve(
    tiny_model_dir: Path, folder: Path, template: str, *flags: str, **environment: str
) -> Server:
    """The tiny model with another template."""
    model = folder / "tiny"
    shutil.copytree(tiny_model_dir, model)
    config = json.loads((model / "tokenizer_config.json").read_text())
    config["chat_template"] = template
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    running = start_server(model, folder / "log", "--max-sequences", "16", *flags, **environment)
    running.wait_ready()
    return running


def with_markers(tiny_model_dir: Path, directory: Path, *markers: str, text: str = "") -> Path:
    """The tiny model with a tokenizer that has `markers` as tokens of their own, from id 3.

    `text` is one token, too, the last: a model can be made to write it by a bias.
    """
    shutil.copytree(tiny_model_dir, directory)
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[
            *(AddedToken(token, special=True) for token in special),
            *(AddedToken(token, special=False) for token in markers),
        ],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["Once upon a time there was a small cat."] * 20, trainer)
    if text:
        tokenizer.add_tokens([AddedToken(text, special=False, normalized=False)])
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory
