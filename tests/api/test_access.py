"""Every route of the table with every kind of key, on applications made from it."""

from __future__ import annotations

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from hagane.api.access import TABLE, GuardedRoute, guarded_router
from hagane.api.keyring import Access, is_one_of
from hagane.server.app import admin_app, create_app
from hagane.system.settings import Settings
from starlette.routing import Mount

KEYS = {"none": "", "wrong": "w", "chat": "chat", "metrics": "scrape", "admin": "root"}


def settings(model, folder, **values) -> Settings:
    return Settings(_cli_parse_args=False, model=str(model), data_dir=folder, **values)


def expected(access: Access, key: str, *, api_keys: bool, metrics_key: bool) -> int | None:
    """401 or 403, or None where the request gets through to the endpoint."""
    if access is Access.OPEN or (access is Access.CHAT and not api_keys):
        return None
    if access is Access.METRICS and not metrics_key:
        return None
    grants = {Access.CHAT: ("chat", "admin"), Access.METRICS: ("metrics", "admin"),
              Access.ADMIN: ("admin",)}  # fmt: skip
    known = {"admin", *(["chat"] if api_keys else []), *(["metrics"] if metrics_key else [])}
    if key in grants[access] and key in known:
        return None
    return 403 if key in known else 401


async def statuses(app: FastAPI, key: str) -> dict[str, int]:
    headers = {"Authorization": f"Bearer {KEYS[key]}"} if KEYS[key] else {}
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    found = {}
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        for name in TABLE:
            method, path = name.split(" ")
            for part in ("{model_id:path}", "{name:path}", "{job_id}", "{file_id}",
                         "{completion_id}", "{dataset_id}", "{eval_id}", "{run_id}",
                         "{output_item_id}", "{feedback_id}", "{key_id}", "{pull_id}"):  # fmt: skip
                path = path.replace(part, "nothing")
            # A body that is none is refused after the key, without a process or a model.
            answer = await client.request(method, path, headers=headers, content=b"{")
            found[name] = answer.status_code
    return found


# Each setting alone and with another.
@pytest.mark.parametrize(
    ("api_keys", "metrics_key", "own_listener"),
    [(False, False, False), (True, False, True), (True, True, False)],
)
async def test_every_route_and_every_key(
    tiny_model_dir, tmp_path, api_keys, metrics_key, own_listener
):
    chosen = settings(
        tiny_model_dir, tmp_path, admin_key="root", api_keys="chat" if api_keys else "",
        metrics_key="scrape" if metrics_key else "", admin_port=0 if own_listener else None,
    )  # fmt: skip
    app = create_app(chosen, lambda: None)
    apps = [(app, False), (admin_app(app), True)] if own_listener else [(app, True)]
    for listener, has_admin in apps:
        for key in KEYS:
            for name, status in (await statuses(listener, key)).items():
                rule = TABLE[name]
                if rule.admin_listener and not has_admin:
                    # 405 where the path has another method for everybody.
                    assert status in (404, 405), (name, key)
                    continue
                wanted = expected(rule.access, key, api_keys=api_keys, metrics_key=metrics_key)
                if wanted is None:
                    assert status not in (401, 403), (name, key)
                else:
                    assert status == wanted, (name, key)


async def test_admin_routes_are_closed_without_an_admin_key(tiny_model_dir, tmp_path):
    app = create_app(settings(tiny_model_dir, tmp_path, api_keys="chat"), lambda: None)
    for key in KEYS:
        for name, status in (await statuses(app, key)).items():
            if TABLE[name].access is Access.ADMIN:
                assert status == 403, (name, key)


def test_the_application_has_the_table_s_routes_and_no_others(tiny_model_dir, tmp_path):
    app = create_app(settings(tiny_model_dir, tmp_path), lambda: None)
    mounts = [route for route in app.routes if isinstance(route, Mount)]
    assert [mount.path for mount in mounts] == ["/web"]
    routes = [route for route in app.routes if route not in mounts]
    assert all(isinstance(route, GuardedRoute) for route in routes)
    names = [f"{method} {route.path}" for route in routes if isinstance(route, APIRoute)
             for method in route.methods - {"HEAD"}]  # fmt: skip
    assert sorted(names) == sorted(TABLE)


async def test_a_wrong_method_is_told_the_right_ones(tiny_model_dir, tmp_path):
    app = create_app(settings(tiny_model_dir, tmp_path), lambda: None)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://localhost"
    ) as client:
        allowed_of = {
            "/v1/models/a": "DELETE, GET", "/tokenize": "POST",
            "/admin/aliases/a/rollback": "POST", "/v1/responses/input_tokens": "POST",
        }  # fmt: skip
        for path, allowed in allowed_of.items():
            answer = await client.put(path)
            assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


def test_a_route_that_is_not_in_the_table_cannot_be_made():
    router = guarded_router()
    with pytest.raises(KeyError, match="GET /secrets is not in the table"):
        router.get("/secrets")(lambda: None)


def test_no_key_is_not_a_key():
    assert is_one_of("a", "b", "a")
    assert not is_one_of("", "", "a")
    assert not is_one_of("\udcff", "a")


async def test_openapi_shows_the_routes_of_admins_to_admins(tiny_model_dir, tmp_path):
    chosen = settings(tiny_model_dir, tmp_path, admin_key="root", api_keys="chat")
    transport = httpx.ASGITransport(create_app(chosen, lambda: None))
    shown = {}
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        for key in ("none", "chat", "admin"):
            headers = {"Authorization": f"Bearer {KEYS[key]}"}
            shown[key] = (await client.get("/openapi.json", headers=headers)).json()
    assert shown["none"] == shown["chat"]
    for key, document in shown.items():
        operations = {
            f"{method.upper()} {path}": operation
            for path, item in document["paths"].items()
            for method, operation in item.items()
        }
        admin = {name for name in operations if "AdminKey" in str(operations[name]["security"])}
        assert ("POST /admin/aliases" in operations) == (key == "admin")
        assert operations["GET /health/live"]["security"] == []
        assert operations["POST /tokenize"]["security"] == [{"ApiKey": []}, {"AdminKey": []}]
        for name, operation in operations.items():
            assert "422" not in operation["responses"], name
            assert ("401" in operation["responses"]) == (name in admin), name
        assert "HTTPValidationError" not in document["components"]["schemas"]
        chat = operations["POST /v1/chat/completions"]["responses"]
        assert set(chat["200"]["content"]) == {"application/json", "text/event-stream"}
        assert {"400", "404", "413", "429", "503"} <= set(chat)
    content = shown["admin"]["paths"]["/v1/files/{file_id}/content"]["get"]["responses"]["200"]
    assert set(content["content"]) == {"application/octet-stream"}
    upload = shown["admin"]["paths"]["/v1/files"]["post"]["requestBody"]["content"]
    fields = {"file", "purpose", "expires_after[anchor]", "expires_after[seconds]"}
    assert set(upload["multipart/form-data"]["schema"]["properties"]) == fields
