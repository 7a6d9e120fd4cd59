"""Feedback over HTTP, on stored answers and on streams that were not stored."""

from __future__ import annotations

import httpx
import openai
import pytest

from tests.support.server import ADMIN_KEY, CHAT_KEY


@pytest.fixture
def call(admin_server):
    def send(method: str, path: str = "", status: int = 200, key: str = CHAT_KEY, **body):
        answer = httpx.request(
            method,
            f"{admin_server.url}/v1/feedback{path}",
            headers={"Authorization": f"Bearer {key}"},
            json=body or None,
        )
        assert answer.status_code == status, answer.text
        return answer.json()

    return send


def ask(server, **fields):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=CHAT_KEY, max_retries=0) as client:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
        answer = client.chat.completions.create(**(body | fields))
        return list(answer) if fields.get("stream") else answer


def test_a_stream_s_id_suffices(admin_server, call):
    name = ask(admin_server, stream=True)[0].id
    before = admin_server_count(admin_server, "thumbs_up")
    given = call("POST", completion_id=name, thumbs="up", author="ann", tags=["good"])
    assert (given["object"], given["model"], given["thumbs"]) == ("feedback", "tiny", "up")
    assert call("POST", completion_id=name, thumbs="up", author="ann", tags=["good"]) == given
    assert admin_server_count(admin_server, "thumbs_up") == before + 1
    changed = call("POST", completion_id=name, score=0.5, author="ann")
    assert (changed["id"], changed["thumbs"], changed["score"]) == (given["id"], None, 0.5)
    listed = call("GET", f"?completion_id={name}")["data"]
    assert listed == [changed]
    call("DELETE", f"/{given['id']}")
    call("DELETE", f"/{given['id']}", 404)


def admin_server_count(server, kind: str) -> float:
    text = httpx.get(f"{server.url}/metrics").text
    lines = [line for line in text.splitlines() if line.startswith("hagane_feedback_total{")]
    return sum(float(line.split()[-1]) for line in lines if f'kind="{kind}"' in line)


def test_preferences_corrections_and_what_is_wrong(admin_server, call):
    better, worse = ask(admin_server, store=True).id, ask(admin_server).id
    given = call(
        "POST", completion_id=better, preferred_over=worse, correction="Hello!", comment="polite"
    )
    assert given["preferred_over"] == worse
    two = ask(admin_server, n=2, temperature=1).id
    call("POST", completion_id=two, choice=1, preferred_over=two)
    for body, status, param in (
        ({"completion_id": better}, 400, "thumbs"),
        ({"completion_id": better, "preferred_over": better}, 400, "preferred_over"),
        ({"completion_id": "chatcmpl-none", "thumbs": "up"}, 404, "completion_id"),
        ({"completion_id": better, "preferred_over": "none"}, 404, "preferred_over"),
        ({"completion_id": better, "score": 2}, 400, "score"),
        ({"completion_id": better, "thumbs": "sideways"}, 400, "thumbs"),
        ({"completion_id": better, "stars": 5}, 400, "stars"),
    ):
        assert call("POST", "", status, **body)["error"]["param"] == param, body


def test_another_key_s_answer_cannot_be_judged(admin_server, call):
    with openai.OpenAI(base_url=f"{admin_server.url}/v1", api_key=ADMIN_KEY) as client:
        other = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "hi"}], max_tokens=2, store=True
        )
    call("POST", "", 404, completion_id=other.id, thumbs="up")
    given = call("POST", "", 200, ADMIN_KEY, completion_id=other.id, thumbs="up")
    assert given["id"] not in [f["id"] for f in call("GET")["data"]]
    call("DELETE", f"/{given['id']}", 404)


def test_feedback_is_labelled_by_arm(admin_server, call):
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    body = {"name": "judged", "target": "tiny", "candidate": "tiny", "percentage": 100}
    httpx.post(f"{admin_server.url}/admin/aliases", json=body, headers=headers)
    given = call("POST", completion_id=ask(admin_server, model="judged").id, thumbs="down")
    assert (given["alias"], given["arm"], given["model"]) == ("judged", "candidate", "tiny")
    text = httpx.get(f"{admin_server.url}/metrics").text
    assert 'alias="judged",arm="candidate",kind="thumbs_down",model="tiny"} 1.0' in text
    httpx.delete(f"{admin_server.url}/admin/aliases/judged", headers=headers)
