"""Rendering, compared with transformers' own."""

from __future__ import annotations

import json

import pytest
from hagane.system.errors import InvalidRequestError, ModelError
from hagane.text.chat_template import ChatTemplate
from hagane.text.tokenizer import Tokenizer
from transformers import AutoTokenizer

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "こんにちは <b>&</b>"},
    {"role": "assistant", "content": "Hello! "},
    {"role": "user", "content": "Bye"},
]
TEMPLATES = {
    "turns": (
        "{%- for m in messages %}\n<|im_start|>{{ m.role }}\n"
        "{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "instructions": (
        "{{ bos_token }}{% set ns = namespace(system='') %}"
        "{% for m in messages %}{% if m['role'] == 'system' %}{% set ns.system = m['content'] %}"
        "{% elif m['role'] == 'user' %}[INST] {{ ns.system ~ '\\n' ~ m['content'] | trim }} [/INST]"
        "{% else %}{{ m['content'].strip() + eos_token }}{% endif %}{% endfor %}"
    ),
    "marked answers": (
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}"
        "{% else %}<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}"
    ),
    "loop control and json": (
        "{% for m in messages %}{% if loop.index0 == 0 %}{% continue %}{% endif %}"
        "{{ m | tojson }}{% if loop.index > 2 %}{% break %}{% endif %}{% endfor %}"
    ),
}


@pytest.fixture
def rendered(tiny_model_dir, tmp_path):
    """Both renderings of a template."""

    def render(template, **options):
        directory = tmp_path / "model"
        directory.mkdir(exist_ok=True)
        text = (tiny_model_dir / "tokenizer.json").read_text(encoding="utf-8")
        (directory / "tokenizer.json").write_text(text, encoding="utf-8")
        settings = {
            "eos_token": "<|im_end|>",
            "bos_token": "<|endoftext|>",
            "tokenizer_class": "PreTrainedTokenizerFast",
            "chat_template": template,
        }
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))
        ours = ChatTemplate.load(directory, Tokenizer.load(directory))
        assert ours is not None
        theirs = AutoTokenizer.from_pretrained(directory)
        return (
            ours.render(CONVERSATION, **options),
            theirs.apply_chat_template(CONVERSATION, tokenize=False, **options),
        )

    return render


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("prompt", [False, True])
def test_rendering_equals_transformers(rendered, name, prompt):
    ours, theirs = rendered(TEMPLATES[name], add_generation_prompt=prompt)
    assert ours == theirs


def test_of_several_named_templates_the_default_is_taken(rendered):
    named = [
        {"name": "default", "template": TEMPLATES["turns"]},
        {"name": "tool_use", "template": "x"},
    ]
    ours, theirs = rendered(named, add_generation_prompt=True)
    assert ours == theirs


def test_a_template_cannot_reach_out():
    template = ChatTemplate("{{ messages.__class__.__mro__ }}", {}, "model")
    with pytest.raises(InvalidRequestError):
        template.render([])
    with pytest.raises(InvalidRequestError):
        ChatTemplate("{{ messages.append(1) }}", {}, "model").render([])


def test_refusals_and_mistakes_are_clear():
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", {}, "model")
    with pytest.raises(InvalidRequestError, match="roles must alternate") as caught:
        template.render([])
    assert caught.value.param == "messages"
    with pytest.raises(ModelError, match="here: the chat template is malformed"):
        ChatTemplate("{% for %}", {}, "here")
