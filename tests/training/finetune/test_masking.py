"""Which tokens are trained, token by token, under several templates."""

from __future__ import annotations

import json

import pytest
from hagane.data.records import RecordError, parse
from hagane.training.finetune.masking import Renderer

from tests.conftest import TEMPLATE

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m['role'] }}<|end|>\n\n"
    "{{ m['content'] | trim }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
)
GENERATION = (
    "{% for m in messages %}{% if m.role == 'assistant' %}A:{% generation %}{{ m.content }}"
    "<|im_end|>{% endgeneration %}\n{% else %}Q:{{ m.content }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)
# Thoughts are shown in the last turn alone, as Qwen3 does.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The generation prompt opens a thought that the template does not repeat.
OPENED = TEMPLATE.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
TOOLS = TEMPLATE.replace(
    "{{ m.content }}",
    "{{ m.content }}{% for c in m.tool_calls or [] %}[{{ c.function.name }}"
    "{{ c.function.arguments | tojson }}]{% endfor %}",
)
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": " 今日は "},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "So long"},
]


@pytest.fixture
def renderer(tiny_model_dir, tmp_path):
    def make(template: str) -> Renderer:
        for name in ("tokenizer.json", "config.json"):
            (tmp_path / name).write_bytes((tiny_model_dir / name).read_bytes())
        config = {"eos_token": "<|im_end|>", "bos_token": "<|endoftext|>"}
        config["chat_template"] = template
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        return Renderer(tmp_path)

    return make


def trained_texts(renderer, record, method="supervised"):
    """The texts that are trained on, one for every unbroken run of tokens of every sequence."""
    texts = []
    for sequences in renderer.sequences(parse(json.dumps(record), method)):
        if isinstance(sequences, RecordError):
            raise sequences
        for sequence in sequences:
            assert len(sequence.tokens) == len(sequence.loss_mask)
            run: list[int] = []
            for token, mine in [*zip(sequence.tokens, sequence.loss_mask, strict=True), (0, False)]:
                if mine:
                    run.append(int(token))
                elif run:
                    texts.append(renderer.tokenizer.decode(run, skip_special_tokens=False))
                    run = []
    return texts


@pytest.mark.parametrize(
    ("template", "first", "second"),
    [
        (TEMPLATE, " 今日は <|im_end|>", "So long<|im_end|>"),
        (LLAMA3, "今日は<|im_end|>", "So long<|im_end|>"),
        (GENERATION, " 今日は <|im_end|>", "So long<|im_end|>"),
        (OPENED, " 今日は <|im_end|>", "So long<|im_end|>"),
    ],
    ids=["chatml", "llama3", "generation", "opened thought"],
)
def test_what_the_assistant_says_is_trained_on(renderer, template, first, second):
    made = renderer(template)
    assert trained_texts(made, {"messages": TURNS}) == [first, second]
    unweighted = [m | {"weight": 0} if "今日" in m["content"] else m for m in TURNS]
    assert trained_texts(made, {"messages": unweighted}) == [second]


def test_the_prompt_before_a_turn_is_the_one_that_serving_makes(renderer):
    made = renderer(TEMPLATE)
    [(sequence,)] = made.sequences(parse(json.dumps({"messages": TURNS[:3]}), "supervised"))
    count = int(sequence.loss_mask.argmax())
    prompt = made.template.render(TURNS[:2], add_generation_prompt=True)
    assert sequence.tokens[:count].tolist() == made.tokenizer.encode(
        prompt, add_special_tokens=False
    )
    assert sequence.loss_mask[count:].all()


def test_a_turn_that_others_change_is_trained_on_as_it_is_said(renderer):
    made = renderer(THINKING)
    thought = "<think>\n\n</think>\n\n"
    wanted = [f"{thought}So long<|im_end|>", f"{thought} 今日は <|im_end|>"]
    assert trained_texts(made, {"messages": TURNS}) == wanted


def test_tool_calls_are_trained_on_as_the_template_renders_them(renderer):
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    turns = [TURNS[1], {"role": "assistant", "content": None, "tool_calls": [call]}]
    assert trained_texts(renderer(TOOLS), {"messages": turns}) == ['[add{"a": 1}]<|im_end|>']


@pytest.mark.parametrize(
    ("record", "method", "texts"),
    [
        ({"prompt": "1 + 1 =", "completion": " 2"}, "supervised", [" 2<|im_end|>"]),
        ({"text": "ab"}, "supervised", ["b<|im_end|>"]),
        ({"prompt": "Q", "chosen": "yes", "rejected": "no"}, "dpo",
         ["yes<|im_end|>", "no<|im_end|>"]),
        ({"input": {"messages": TURNS[:2]}, "preferred_output": [TURNS[4]],
          "non_preferred_output": [{"role": "assistant", "content": "No"}]}, "dpo",
         ["So long<|im_end|>", "No<|im_end|>"]),
        ({"chosen": TURNS, "rejected": [*TURNS[:4], {"role": "assistant", "content": "No"}]},
         "dpo", ["So long<|im_end|>", "No<|im_end|>"]),
    ],
)  # fmt: skip
def test_other_kinds_of_record(renderer, record, method, texts):
    assert trained_texts(renderer(TEMPLATE), record, method) == texts


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"messages": [{"role": "user", "content": "Hi"}]}, "no assistant message"),
        ({"messages": [{"role": "bot", "content": "Hi"}]}, r"messages\[0\]\.role is 'bot'"),
        ({"messages": [{"role": "assistant", "content": 3}]}, r"content is 3"),
        ({"messages": [{"role": "assistant", "content": "a", "weight": 2}]}, "weight is 2"),
        ({"prompt": "a"}, "its keys are: prompt"),
        ({"text": " "}, "text is empty"),
        ([], "must be a JSON object"),
    ],
)
def test_what_is_wrong_is_said(record, reason):
    with pytest.raises(RecordError, match=reason):
        parse(json.dumps(record), "supervised")


def test_every_turn_of_a_long_conversation_is_found(renderer):
    """More than one call to the template's process may render."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": f"say {i}"} for i in range(120)]
    wanted = [f"say {i}<|im_end|>" for i in range(1, 120, 2)]
    assert trained_texts(renderer(TEMPLATE), {"messages": turns}) == wanted


def test_lines_read_together_are_those_read_one_by_one(renderer):
    made = renderer(THINKING)
    rewriting = [{"role": "assistant", "content": "a"}, *TURNS[1:]]
    records = [TURNS, TURNS[:3], rewriting, [*TURNS[3:]]]
    answers = [parse(json.dumps({"messages": r}), "supervised")[0] for r in records]
    answers.insert(1, parse(json.dumps({"prompt": "1 + 1 =", "completion": " 2"}), "supervised")[0])

    def shown(found):
        return [[(s.tokens.tolist(), s.loss_mask.tolist()) for s in one] for one in found]

    together = made.sequences(answers)
    assert shown(together) == shown(one for a in answers for one in made.sequences([a]))
    assert [len(one) for one in together] == [2, 1, 1, 3, 1]
