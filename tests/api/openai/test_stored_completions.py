"""Stored completions through the stock client, against a real server."""

from __future__ import annotations

import httpx
import openai
import pytest

from tests.support.server import ADMIN_KEY, CHAT_KEY, OTHER_KEY

HELLO = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Once upon"}]


@pytest.fixture
def stored(admin_server):
    """A server with two chat keys."""
    return admin_server


def client(server, key: str = CHAT_KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


def ask(server, key: str = CHAT_KEY, **fields):
    body = {"model": "tiny", "messages": HELLO, "max_tokens": 6, "store": True, **fields}
    return client(server, key).chat.completions.create(**body)


def test_the_life_of_a_stored_completion(stored):
    answer = ask(stored, metadata={"topic": "cats"}, temperature=0, user="u1")
    completions = client(stored).chat.completions
    found = completions.retrieve(answer.id)
    assert found.choices == answer.choices
    assert found.usage == answer.usage
    assert found.metadata == {"topic": "cats"}
    assert (found.temperature, found.input_user) == (0, "u1")
    messages = completions.messages.list(answer.id).data
    assert [(m.role, m.content) for m in messages] == [
        ("system", "Be brief."), ("user", "Once upon"),
    ]  # fmt: skip
    rest = completions.messages.list(answer.id, after=messages[0].id, limit=1)
    assert [m.content for m in rest.data] == ["Once upon"]
    changed = completions.update(answer.id, metadata={"topic": "dogs"})
    assert changed.metadata == {"topic": "dogs"}
    listed = completions.list(metadata={"topic": "dogs"}, model="tiny").data
    assert [c.id for c in listed] == [answer.id]
    assert completions.list(metadata={"topic": "cats"}).data == []
    assert completions.delete(answer.id).deleted
    with pytest.raises(openai.NotFoundError):
        completions.retrieve(answer.id)


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_is_stored_where_that_is_said(stored, stream):
    api = client(stored)
    fields = {
        "model": "tiny", "instructions": "Be brief.", "input": "Once upon", "temperature": 0,
        "max_output_tokens": 6, "metadata": {"topic": "cats"}, "user": "u2",
    }  # fmt: skip
    api.responses.create(**fields)
    answer = api.responses.create(**fields, store=True, stream=stream)
    if stream:
        answer = list(answer)[-1].response
    found = api.chat.completions.list(metadata={"topic": "cats"}).data
    assert [one.id for one in found] == [answer.id]
    assert found[0].choices[0].message.content == answer.output_text
    assert found[0].usage.completion_tokens == answer.usage.output_tokens
    messages = api.chat.completions.messages.list(answer.id).data
    assert [(m.role, m.content) for m in messages] == [
        ("system", "Be brief."), ("user", "Once upon"),
    ]  # fmt: skip
    api.responses.delete(answer.id)
    with pytest.raises(openai.NotFoundError):
        api.chat.completions.retrieve(answer.id)


def test_a_stream_is_stored_as_it_was_sent(stored):
    chunks = list(ask(stored, stream=True, logprobs=True, n=2, temperature=1, seed=3))
    said = ["", ""]
    for chunk in chunks:
        for choice in chunk.choices:
            said[choice.index] += choice.delta.content or ""
    found = client(stored).chat.completions.retrieve(chunks[0].id)
    assert [choice.message.content for choice in found.choices] == said
    assert all(choice.finish_reason for choice in found.choices)
    assert all(len(choice.logprobs.content) for choice in found.choices)


def test_only_what_was_asked_for_is_stored_and_never_another_key_s(stored):
    mine, theirs = ask(stored), ask(stored, OTHER_KEY)
    for store in (False, None):
        with pytest.raises(openai.NotFoundError):
            client(stored).chat.completions.retrieve(ask(stored, store=store).id)
    own = {c.id for c in client(stored).chat.completions.list()}
    assert mine.id in own
    assert theirs.id not in own
    completions = client(stored).chat.completions
    for refused in (
        lambda: completions.retrieve(theirs.id),
        lambda: completions.update(theirs.id, metadata={}),
        lambda: completions.delete(theirs.id),
        lambda: completions.messages.list(theirs.id),
    ):
        with pytest.raises(openai.NotFoundError) as error:
            refused()
        assert error.value.param == "completion_id"
    everybody = {c.id for c in client(stored, ADMIN_KEY).chat.completions.list(order="desc")}
    assert {mine.id, theirs.id} <= everybody


def test_a_user_s_answers_are_deleted_together(stored):
    gone = [ask(stored, user="leaving").id for _ in range(2)]
    kept = ask(stored, OTHER_KEY, user="leaving").id
    url, key = f"{stored.url}/v1/chat/completions", {"Authorization": f"Bearer {CHAT_KEY}"}
    answer = httpx.delete(url, params={"user": "leaving"}, headers=key).json()
    assert answer["completions"] == 2
    for completion in gone:
        with pytest.raises(openai.NotFoundError):
            client(stored).chat.completions.retrieve(completion)
    assert client(stored, OTHER_KEY).chat.completions.retrieve(kept).id == kept
    assert httpx.delete(url, headers=key).status_code == 400


def test_pages(stored):
    made = [ask(stored, metadata={"page": "yes"}).id for _ in range(3)]
    first = client(stored).chat.completions.list(limit=2, metadata={"page": "yes"})
    assert ([c.id for c in first.data], first.has_more) == (made[:2], True)
    assert [c.id for c in first.get_next_page().data] == made[2:]
    with pytest.raises(openai.BadRequestError) as error:
        client(stored).chat.completions.list(after="nothing")
    assert error.value.param == "after"


def test_without_a_data_directory_answers_are_kept_in_memory(server):
    answer = ask(server)
    assert client(server).chat.completions.retrieve(answer.id).id == answer.id
