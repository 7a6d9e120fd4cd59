"""Rendering, compared with transformers' own."""

from __future__ import annotations

import json
import threading
import time

import pytest
from hagane.system.errors import InvalidRequestError, ModelError
from hagane.system.sandbox import Sandbox
from hagane.text.chat_template import ChatTemplate, TemplateInput
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
    "arguments of tojson": (
        "{{ messages | tojson(ensure_ascii=True) }}{{ messages | tojson(indent=2) }}"
        "{{ messages | tojson(separators=(',', ':'), sort_keys=True) }}"
    ),
    "dates": "{{ strftime_now('%Y') }}{{ strftime_now is defined }}",
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


@pytest.fixture
def small():
    made = Sandbox(processes=2, seconds=0.3, memory=128 << 20)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ range(1000000) }}", "OverflowError"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
        ("{{ messages[0].content.format() }}", "KeyError: 'x'"),
        ("{{ messages[0].content % 1 }}", "TypeError"),
        ("{{ nothing.at.all }}", "'nothing' is undefined"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
         "more than 0.3 s"),
        ("{{ 'a' * 400000000 }}", "more than 128 MiB"),
        ("{{ 10 ** (10 ** 10) }}", "more than"),
        ("{{ '%0999999999d' % 1 }}", "more than 128 MiB"),
    ],
)  # fmt: skip
def test_any_failure_is_the_requests_own(small, source, words):
    template = ChatTemplate(source, {}, "model", small)
    innocent = ChatTemplate("{{ messages[0].content }}", {}, "model", small)
    others: list[str] = []

    def chat():
        for _ in range(20):
            others.append(innocent.render([{"role": "user", "content": "{x}"}]))

    client = threading.Thread(target=chat)
    client.start()
    started = time.monotonic()
    with pytest.raises(InvalidRequestError, match="chat template refuses") as caught:
        template.render([{"role": "user", "content": "{x}"}])
    assert words in str(caught.value) and caught.value.param == "messages"
    assert time.monotonic() - started < 10
    client.join()
    assert others == ["{x}"] * 20


@pytest.mark.parametrize(
    "source",
    [
        "{% set x = " + "(" * 50_000 + "1" + ")" * 50_000 + " %}",
        "{% if true %}" * 20_000 + "{% endif %}" * 20_000,
        "{{ " + "1 + " * 200_000 + "1 }}",
        "{% extends 'other' %}{% block",
    ],
)
def test_templates_that_cannot_be_compiled_are_refused_in_bounded_time(small, source):
    started = time.monotonic()
    with pytest.raises(ModelError, match="here: the chat template is malformed"):
        ChatTemplate(source, {}, "here", small)
    assert time.monotonic() - started < 10


def test_constants_that_are_never_reached_are_not_computed(small):
    source = "{% if false %}{{ 'a' * 400000000 }}{{ 10 ** (10 ** 10) }}{% endif %}fine"
    assert ChatTemplate(source, {}, "model", small).render([]) == "fine"


@pytest.mark.parametrize(
    "name", ["self", "messages", "bos_token", "eos_token", "raise_exception", "range", "namespace"]
)
def test_names_that_are_the_servers_are_refused(name):
    template = ChatTemplate("{{ bos_token }}", {"bos_token": "<s>"}, "model")
    with pytest.raises(InvalidRequestError, match=f"must not set '{name}'") as caught:
        template.render([], **{name: 1})
    assert caught.value.param == "chat_template_kwargs"


def test_what_json_cannot_hold_is_refused():
    nested: list = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(InvalidRequestError):
        ChatTemplate("{{ x }}", {}, "model").render([], x=nested)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (["a text"], "must be a text, or a list of named templates"),
        (7, "must be a text"),
        ([{"name": "default", "template": 7}], "must be a text"),
        ("a" * (2 << 20), "longer than"),
    ],
)
def test_templates_of_wrong_shapes_are_refused_by_file(rendered, setting, message):
    with pytest.raises(ModelError, match=rf"tokenizer_config.json: chat_template .*{message}"):
        rendered(setting)


def test_template_files_are_read_as_text(tiny_model_dir, tmp_path):
    tokenizer = Tokenizer.load(tiny_model_dir)
    path = tmp_path / "chat_template.jinja"
    path.write_bytes("\ufeff{{ messages | length }}".encode())
    template = ChatTemplate.load(tmp_path, tokenizer)
    assert template is not None and template.render([]) == "0"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ModelError, match=r"chat_template\.jinja is not UTF-8"):
        ChatTemplate.load(tmp_path, tokenizer)


def test_half_a_character_is_the_template_s_fault():
    template = ChatTemplate(r"{{ '\ud800' }}", {}, "model")
    with pytest.raises(InvalidRequestError, match="surrogate"):
        template.render([])


def test_of_many_conversations_one_that_takes_too_much_fails_alone(small):
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    source = (
        "{% if messages[0].content == 'no' %}{{ raise_exception('never') }}{% endif %}"
        f"{{% if messages[0].content == 'bomb' %}}{loops}{{% endif %}}{{{{ messages[0].content }}}}"
    )
    template = ChatTemplate(source, {}, "test", small)
    answer = {"role": "assistant", "content": ""}
    asked = [{"role": "user", "content": text} for text in ("a", "bomb", "no", "b")]
    found = template.render_turns([TemplateInput((one, answer), (1,), {}) for one in asked])
    assert [getattr(one, "text", None) for one in found] == ["a", None, None, "b"]
    assert "processor time" in str(found[1]) and "never" in str(found[2])
