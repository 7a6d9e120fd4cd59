"""Sampling defaults and ends of answers, as models' files have them."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hagane.models.families import read_config_file
from hagane.system.errors import ModelError
from hagane.text.chat_template import ChatTemplate
from hagane.text.generation_defaults import GenerationDefaults
from hagane.text.tokenizer import Tokenizer

TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


@pytest.fixture
def load(tiny_model_dir, tmp_path):
    tokenizer = Tokenizer.load(tiny_model_dir)
    config = dataclasses.replace(read_config_file(tiny_model_dir), eos_token_ids=())

    def read(stored, template=None, config=config, tokenizer=tokenizer):
        text = stored if isinstance(stored, str) else json.dumps(stored)
        (tmp_path / "generation_config.json").write_text(text, encoding="utf-8")
        chat = None if template is None else ChatTemplate(template, {}, "model")
        return GenerationDefaults.load(tmp_path, tokenizer, config, chat)

    return read


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ({"top_k": -1}, {"top_k": 0}),
        ({"top_k": 10**9}, {"top_k": 0}),
        ({"top_k": 20, "top_p": 0.8, "temperature": 0.7},
         {"top_k": 20, "top_p": 0.8, "temperature": 0.7}),
        ({"temperature": 2.5}, {"temperature": 2.5}),
        ({"top_p": 1.5}, {"top_p": 1.0}),
        ({"do_sample": False, "temperature": 0.1, "top_k": 5}, {"temperature": 1.0, "top_k": 0}),
        ({"temperature": None, "top_k": None, "do_sample": None}, {"temperature": 1.0}),
        ('\ufeff{"temperature": 0.5}', {"temperature": 0.5}),
    ],
)  # fmt: skip
def test_oddities_mean_what_their_authors_meant(load, stored, expected):
    defaults = load(stored)
    assert {key: getattr(defaults, key) for key in expected} == expected


@pytest.mark.parametrize("eos", [-1, [-1], 10**9, [10**9, -5]])
def test_ends_that_no_token_has_end_nothing(load, eos):
    assert load({"eos_token_id": eos}).eos_token_ids == load({}).eos_token_ids


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ("[]", "must hold a JSON object, not a list"),
        ({"eos_token_id": "two"}, "eos_token_id is 'two'"),
        ({"eos_token_id": [1, None]}, r"eos_token_id\[1\] is"),
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ('{"temperature": NaN}', "temperature is NaN"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"top_k": 1.5}, "top_k is 1.5"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_wrong_shapes_are_one_clear_line(load, stored, message):
    with pytest.raises(ModelError, match=rf"generation_config\.json:? .*{message}") as caught:
        load(stored)
    assert "\n" not in str(caught.value)


def test_what_ends_trained_turns_ends_answers(load, tiny_model_dir):
    tokenizer = Tokenizer.load(tiny_model_dir)
    (end,) = tokenizer.encode("<|im_end|>")
    base = Tokenizer(tokenizer._backend, {"eos_token": "<|endoftext|>"})
    assert end not in load({}, tokenizer=base).eos_token_ids
    assert end in load({}, TURNS, tokenizer=base).eos_token_ids


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no') }}",
        "{% for m in messages %}{{ m.content }}\n{% endfor %}",
        "{% for m in messages %}{{ m.content }} then <|im_end|>{% endfor %}",
        "{{ messages | length }}<|im_end|>",
    ],
)
def test_templates_that_end_turns_with_no_token_add_none(load, template):
    assert load({}, template).eos_token_ids == load({}).eos_token_ids
