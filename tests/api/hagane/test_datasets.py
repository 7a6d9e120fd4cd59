"""Data sets over HTTP: built from stored answers of a real server, previewed, edited, versioned."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from tests.support.server import ADMIN_KEY, CHAT_KEY, start_server, stop_server

ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}


@pytest.fixture(scope="module")
def learned(tiny_model_dir, tmp_path_factory):
    """A server with judged answers; returns it and the ids of the answers by their question."""
    folder = tmp_path_factory.mktemp("learned")
    server = start_server(
        tiny_model_dir, folder / "log", "--data-dir", str(folder / "data"),
        HAGANE_ADMIN_KEY=ADMIN_KEY, HAGANE_API_KEYS=CHAT_KEY,
    )  # fmt: skip
    server.wait_ready()
    yield server, teach(server)
    stop_server(server)


def teach(server) -> dict[str, str]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=CHAT_KEY, max_retries=0) as client:

        def ask(question: str, **fields) -> str:
            messages = [{"role": "user", "content": question}]
            body = {"model": "tiny", "messages": messages, "max_tokens": 8, "store": True}
            return client.chat.completions.create(**(body | fields)).id

        questions = [f"Question {n}, about {'abcdefghij'[n] * 9}" for n in range(10)]
        with ThreadPoolExecutor(4) as pool:
            ids = dict(zip(questions, pool.map(ask, questions), strict=True))
        ids["again"] = ask(questions[0])
        ids["pair"] = ask(questions[1], seed=5, temperature=2)
    judge(server, ids[questions[0]], correction="Write to ann@example.org.", tags=["mail"])
    judge(server, ids["again"], correction="Write to ann@example.org.")
    for question in questions[1:6]:
        judge(server, ids[question], thumbs="up")
    judge(server, ids[questions[6]], thumbs="down")
    judge(server, ids[questions[7]], score=0.9)
    judge(server, ids[questions[1]], thumbs="up", preferred_over=ids["pair"])
    return ids


def judge(server, completion: str, **said) -> None:
    answer = httpx.post(
        f"{server.url}/v1/feedback",
        json={"completion_id": completion, **said},
        headers={"Authorization": f"Bearer {CHAT_KEY}"},
    )
    assert answer.status_code == 200, answer.text


def call(server, method: str, path: str = "", status: int = 200, **body):
    url = f"{server.url}/v1/datasets{path}"
    answer = httpx.request(method, url, json=body or None, headers=ADMIN, timeout=60)
    assert answer.status_code == status, answer.text
    return answer.json()


def records(server, file_id: str) -> list[dict]:
    text = httpx.get(f"{server.url}/v1/files/{file_id}/content", headers=ADMIN).text
    return [json.loads(line) for line in text.splitlines()]


ANY_END = {"finish_reasons": ["stop", "length"]}


def test_preview_counts_what_is_in_and_what_is_not(learned):
    server, ids = learned
    shown = call(server, "POST", "/preview", filter=ANY_END, limit=7)
    card = shown["card"]
    assert card["reasons"] == {"corrected": 1, "liked": 6}
    assert card["skipped"]["exact_duplicate"] == 1
    assert card["skipped"]["disliked"] == 1
    # Questions 8 and 9, and the worse one of the pair.
    assert card["skipped"]["unjudged"] == 3
    assert card["masked"] == {"email": 2}
    assert card["records"] == 7
    assert card["training"] + card["validation"] == 7
    assert card["validation"] >= 1
    assert len(shown["records"]) == 7
    fewer = call(server, "POST", "/preview", filter=ANY_END, limit=3)
    assert fewer["records"] == shown["records"][:3]
    answers = [record["messages"][-1]["content"] for record in shown["records"]]
    assert "Write to [EMAIL]." in answers
    tagged = call(server, "POST", "/preview", filter={"tags": ["mail"]})
    assert [r["source"] for r in tagged["records"]] == [f"{next(iter(ids.values()))}:0"]


def test_versions_edits_and_deletion(learned):
    server, _ = learned
    first = call(server, "POST", name="liked", filter=ANY_END)
    assert (first["version"], first["method"], len(first["digest"])) == (1, "supervised", 64)
    assert call(server, "POST", name="liked", filter=ANY_END)["id"] == first["id"]
    lines = records(server, first["training_file"])
    assert len(lines) == first["card"]["training"]
    held = records(server, first["validation_file"])
    asked = [{r["messages"][0]["content"] for r in part} for part in (lines, held)]
    assert not asked[0] & asked[1]
    gone, changed = lines[0]["source"], lines[1]["source"]
    second = call(
        server, "POST", f"/{first['id']}/edit", remove=[gone], answers={changed: "Better."}
    )
    assert (second["version"], second["parent"]) == (2, first["id"])
    edited = records(server, second["training_file"])
    assert [r["source"] for r in edited] == [r["source"] for r in lines[1:]]
    assert edited[0]["messages"][-1]["content"] == "Better."
    listed = call(server, "GET", "?name=liked")["data"]
    assert [d["version"] for d in listed] == [2, 1]
    wrong = call(server, "POST", f"/{first['id']}/edit", 400, remove=["nothing"])
    assert wrong["error"]["param"] == "remove"
    call(server, "DELETE", f"/{second['id']}")
    call(server, "GET", f"/{second['id']}", 404)
    files = httpx.get(f"{server.url}/v1/files/{second['training_file']}", headers=ADMIN)
    assert files.status_code == 404
    report = httpx.get(f"{server.url}/v1/files/{first['training_file']}/report", headers=ADMIN)
    assert report.json()["training"]["total_problems"] == 0


def test_preferences_become_pairs(learned):
    server, ids = learned
    made = call(server, "POST", name="pairs", filter={"method": "dpo", "validation": 0, **ANY_END})
    assert made["card"]["reasons"]["preferred"] == 1
    pairs = records(server, made["training_file"])
    assert made["validation_file"] is None
    preferred = [p for p in pairs if p["source"].startswith(ids["Question 1, about bbbbbbbbb"])]
    assert preferred[0]["preferred_output"] != preferred[0]["non_preferred_output"]


def test_thumbs_become_labels(learned):
    server, ids = learned
    wanted = {"method": "kto", **ANY_END}
    made = call(server, "POST", name="labels", filter=wanted)
    card = made["card"]
    # The first question's two answers were corrected, to the same text.
    assert card["reasons"] == {"corrected": 1, "disliked": 3, "liked": 6}
    assert card["skipped"] == {"exact_duplicate": 1, "unjudged": 3}
    files = [made["training_file"], made["validation_file"]]
    labels = {r["source"]: r["label"] for file in files for r in records(server, file)}
    assert len(labels) == card["records"] == 10
    questions = list(ids)
    assert labels[f"{ids[questions[0]]}:0:correction"] is True
    assert labels[f"{ids[questions[0]]}:0"] is labels[f"{ids[questions[6]]}:0"] is False
    assert all(labels[f"{ids[question]}:0"] for question in questions[1:6])
    source = records(server, made["training_file"])[0]["source"]
    edited = call(server, "POST", f"/{made['id']}/edit", answers={source: "Another."})
    first = records(server, edited["training_file"])[0]
    assert (first["messages"][-1]["content"], first["label"]) == ("Another.", labels[source])
    report = httpx.get(
        f"{server.url}/v1/files/{made['training_file']}/report?method=kto", headers=ADMIN
    )
    assert report.json()["training"]["total_problems"] == 0
    unjudged = {**wanted, "answers": ["liked", "unjudged"]}
    refused = call(server, "POST", "/preview", 400, filter=unjudged)
    assert "no label" in refused["error"]["message"]


def test_what_cannot_be_built_is_refused(learned):
    server, _ = learned
    for body, status, param in (
        ({"name": "a", "filter": {"models": ["nowhere"]}}, 400, "filter"),
        ({"name": "a", "filter": {"method": "magic"}}, 400, "filter.method"),
        ({"name": "a", "filter": {"colour": 1}}, 400, "filter.colour"),
        ({"name": "a b"}, 400, "name"),
        ({}, 400, None),
    ):
        assert call(server, "POST", "", status, **body)["error"]["param"] == param, body
    call(server, "POST", "/nothing/edit", 404, remove=["a"])
    chat = {"Authorization": f"Bearer {CHAT_KEY}"}
    assert httpx.get(f"{server.url}/v1/datasets", headers=chat).status_code == 403
