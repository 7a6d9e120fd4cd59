"""Files to documents, and documents to those trained on and those held out."""

from __future__ import annotations

import json

import pytest
from hagane.data.documents import Corpus, documents, split
from hagane.system.errors import ConfigurationError


def test_no_text_is_both_trained_on_and_held_out(tmp_path):
    texts = [f"document {i % 50}" for i in range(200)]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        lines = "\n".join(json.dumps({"text": text}) for text in texts)
        (tmp_path / name / "same.jsonl").write_text(lines)
    corpora = [Corpus(path=tmp_path / name / "same.jsonl") for name in ("a", "b")]
    parts = split(corpora, 0.1, seed=0)
    assert [part.label for part in parts] == ["same-1", "same-2"]
    for part in parts:
        assert len(part.held_out) == 5
        assert len(part.training) == 180
        assert not set(part.training) & set(parts[0].held_out)
    assert parts == split(corpora, 0.1, seed=0)


def test_corpora_are_files_directories_or_globs(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}')
    (tmp_path / "b.txt").write_text("line\n" * 4000)
    pieces = list(documents(Corpus(path=tmp_path / "b.txt")))
    assert "".join(pieces) == "line\n" * 4000
    assert len(pieces) == 3
    assert list(documents(Corpus(path=tmp_path))) == ["one", "two", *pieces]
    assert list(documents(Corpus(path=tmp_path / "*.jsonl"))) == ["one", "two"]
    with pytest.raises(ConfigurationError, match="matches no file"):
        list(documents(Corpus(path=tmp_path / "*.csv")))
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"txt": "two"}')
    with pytest.raises(ConfigurationError, match="line 2"):
        list(documents(Corpus(path=tmp_path / "a.jsonl")))


def test_conversations_are_rendered_as_the_chat_template_renders_them(tmp_path):
    turns = [{"role": "user", "content": "Hi", "name": "a"}, {"role": "assistant", "content": "Yo"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": turns, "note": 3}))
    assert list(documents(Corpus(path=tmp_path / "a.jsonl"))) == [
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n"
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "Invalid JSON"),
        ("[1]", "a record needs 'text' or 'messages'"),
        ('{"text": 3}', "text: Input should be a valid string"),
        ('{"messages": [{"content": "Hi"}]}', r"messages\.0\.role: Field required"),
        ('{"messages": [{"role": "user", "content": null}]}', r"messages\.0\.content"),
        ('{"messages": {"role": "user"}}', "messages: Input should be a valid array"),
        (r'{"text": "\ud800"}', "Invalid JSON"),
    ],
)
def test_a_bad_record_names_file_line_and_key(tmp_path, line, reason):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n' + line)
    with pytest.raises(ConfigurationError, match=f"a.jsonl line 2: {reason}"):
        list(documents(Corpus(path=tmp_path / "a.jsonl")))
