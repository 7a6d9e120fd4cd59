"""Aliases and kept adapters over HTTP."""

from __future__ import annotations

import json

import httpx
import pytest


@pytest.fixture
def call(admin_server):
    def send(method: str, path: str, status: int = 200, **body) -> dict:
        answer = httpx.request(
            method,
            f"{admin_server.url}{path}",
            headers={"Authorization": "Bearer admin-key"},
            json=body or None,
        )
        assert answer.status_code == status, answer.text
        return answer.json()

    return send


def test_the_life_of_an_alias(call):
    made = call("POST", "/admin/aliases", name="team.support", target="tiny", expected_generation=0)
    assert (made["object"], made["generation"], made["target"]) == ("alias", 1, "tiny")
    second = call(
        "POST", "/admin/aliases", name="team.support", target="tiny",
        candidate="tiny", percentage=10, expected_generation=1,
    )  # fmt: skip
    assert second["percentage"] == 10
    listed = call("GET", "/admin/aliases")["data"]
    assert [alias for alias in listed if alias["name"] == "team.support"] == [second]
    back = call("POST", "/admin/aliases/team.support/rollback", expected_generation=2)
    assert (back["generation"], back["candidate"]) == (3, None)
    history = call("GET", "/admin/aliases/team.support")["history"]
    assert [entry["generation"] for entry in history] == [3, 2, 1]
    assert call("POST", "/admin/aliases/team.support/rollback")["percentage"] == 10
    call("DELETE", "/admin/aliases/team.support")
    call("DELETE", "/admin/aliases/team.support", 404)


def test_a_lost_race_and_wrong_targets_are_told(call):
    call("POST", "/admin/aliases", name="a", target="tiny")
    error = call("POST", "/admin/aliases", 409, name="a", target="tiny", expected_generation=0)
    assert error["error"]["code"] == "generation_mismatch"
    both = {"name": "b", "target": "tiny", "candidate": "tiny"}
    for body, status, param in (
        ({"name": "b", "target": "nowhere"}, 404, "target"),
        (both | {"candidate": "nowhere"}, 404, "candidate"),
        ({"name": "b", "target": "a"}, 400, "target"),
        ({"name": "b", "target": "tiny", "percentage": 5}, 400, "percentage"),
        (both | {"percentage": 101}, 400, "percentage"),
        ({"name": "with space", "target": "tiny"}, 400, "name"),
        ({"name": "tiny", "target": "tiny"}, 409, "name"),
    ):  # fmt: skip
        assert call("POST", "/admin/aliases", status, **body)["error"]["param"] == param
    call("POST", "/admin/adapters/nowhere/promote", 404)
    call("DELETE", "/v1/models/nowhere", 404)


@pytest.mark.parametrize("name", ["a b", "a/b", "../a", "a:b", "a\x00", "\u202ea", "", "a" * 129])
def test_names_that_are_unsafe_in_paths_and_terminals_are_refused(admin_server, name):
    headers = {"Authorization": "Bearer admin-key"}
    for path, body in (
        ("/admin/aliases", {"name": name, "target": "tiny"}),
        ("/v1/load_lora_adapter", {"lora_name": name, "lora_path": "x"}),
    ):
        answer = httpx.post(f"{admin_server.url}{path}", json=body, headers=headers)
        assert answer.status_code == 400, (path, name)


@pytest.mark.parametrize("field", ["generation", "expected_generation"])
def test_generations_beyond_the_database_s_integers_are_refused(admin_server, field):
    answer = httpx.post(
        f"{admin_server.url}/admin/aliases/a/rollback",
        json={field: 1 << 63},
        headers={"Authorization": "Bearer admin-key"},
    )
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)


@pytest.mark.parametrize("path", ["a\x00b", "a" * 4000, "a/" * 2000, "\ud800"])
def test_what_is_no_path_is_no_directory(admin_server, path):
    headers = {"Authorization": "Bearer admin-key", "Content-Type": "application/json"}
    body = json.dumps({"lora_name": "a", "lora_path": path})
    for route, content in (
        ("/v1/load_lora_adapter", body),
        ("/admin/pretraining/jobs", json.dumps({"config": {"start_from": path, "corpora": []}})),
    ):
        answer = httpx.post(f"{admin_server.url}{route}", content=content, headers=headers)
        assert answer.status_code == 400, (route, path[:10], answer.text)
