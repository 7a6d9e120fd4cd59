"""The last lines of the log: bounded, filtered, without secrets."""

from __future__ import annotations

import logging

import pytest
from hagane.system.recent_log import LogLine, RecentLines


@pytest.fixture
def recent():
    return RecentLines(5)


@pytest.fixture
def logger(recent):
    made = logging.Logger("hagane.some.part")
    made.addHandler(recent)
    return made


def messages(recent, **filters):
    return [line.message for _, line in recent.find(limit=10, **filters)]


def test_the_oldest_lines_give_way(recent, logger):
    for number in range(8):
        logger.info("line %d", number)
    assert messages(recent) == [f"line {number}" for number in range(3, 8)]
    numbers = [number for number, _ in recent.find(limit=2)]
    assert numbers == [7, 8]
    assert [line.message for _, line in recent.find(limit=10, after=7)] == ["line 7"]


def test_filters(recent, logger):
    logger.info("the Cat", extra={"request_id": "req_1"})
    logger.error("a dog")
    recent.add([LogLine(1.0, logging.WARNING, "hagane.engine", "old", "req_2", "engine")])
    assert messages(recent, text="cat") == ["the Cat"]
    assert messages(recent, text="REQ_2") == ["old"]
    assert messages(recent, text="some.part") == ["the Cat", "a dog"]
    assert messages(recent, level=logging.WARNING) == ["a dog", "old"]
    assert messages(recent, since=2.0) == ["the Cat", "a dog"]


def test_an_exception_brings_its_traceback(recent, logger):
    try:
        raise ValueError("broken")
    except ValueError:
        logger.exception("it failed")
    (said,) = messages(recent)
    assert said.startswith("it failed\nTraceback")
    assert said.endswith("ValueError: broken")


@pytest.mark.parametrize(
    "secret",
    ["Bearer abc.def-1", "sk-hagane-0123456789", "hf_AbCd123", "password=hush", "api_key=x1y2"],
)
def test_what_looks_like_a_secret_is_hidden(recent, logger, secret):
    logger.warning("calling with %s, and on", secret)
    (said,) = messages(recent)
    assert secret.split("=")[-1].split(" ")[-1] not in said
    assert "[hidden]" in said
    assert said.endswith(", and on")


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("postgresql://me:hush@db.local/x", "postgresql://[hidden]@db.local/x"),
        ("x-api-key: hush", "x-api-key: [hidden]"),
        ('{"api_key": "hush", "a": 1}', '{"api_key": "[hidden]", "a": 1}'),
        ('{"password": "hush, hush", "a": 1}', '{"password": "[hidden]", "a": 1}'),
        ("{'token': 'hush'}", "{'token': '[hidden]'}"),
        (r'"{\"secret\": \"hush\"}"', r'"{\"secret\": \"[hidden]\"}"'),
        ("password='hush' at", "password='[hidden]' at"),
        ("Authorization: Basic hush", "Authorization: Basic [hidden]"),
        ("authorization: hush", "authorization: [hidden]"),
        ("https://hub/f?Signature=hush&Key-Pair-Id=K1", "https://hub/f?Signature=[hidden]&Key-Pair-Id=K1"),
        ("https://hub/f?X-Amz-Signature=hush&x=1", "https://hub/f?X-Amz-Signature=[hidden]&x=1"),
        ("https://hub/f?sig=hush", "https://hub/f?sig=[hidden]"),
        ("read 5 tokens: all, at http://127.0.0.1:8000/v1 for me@home", None),
        ("the monkey: an animal; '' is no key", None),
    ],
)  # fmt: skip
def test_secrets_in_addresses_headers_and_json_are_hidden_and_no_more(recent, logger, said, kept):
    logger.warning("%s, and on", said)
    assert messages(recent) == [f"{kept or said}, and on"]


def test_a_line_is_bounded_and_a_bad_one_harms_nobody(recent, logger, monkeypatch):
    logger.info("x" * 100_000)
    assert len(messages(recent)[0]) == 4000
    monkeypatch.setattr(logging, "raiseExceptions", False)
    logger.info("%d", "no number")
    assert len(messages(recent)) == 1


def test_what_is_taken_is_gone(recent, logger):
    logger.info("one")
    logger.info("two")
    assert [line.message for line in recent.take()] == ["one", "two"]
    assert recent.take() == []
