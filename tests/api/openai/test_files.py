"""/v1/files as the stock client and a careless one use it."""

from __future__ import annotations

import hashlib
import json

import httpx
import openai
import pytest

from tests.support.server import ADMIN_KEY

LINE = json.dumps({"messages": [{"role": "user", "content": "Hi"},
                                {"role": "assistant", "content": "今日は"}]}) + "\n"  # fmt: skip


def upload(admin, content: bytes | str = LINE, name: str = "a.jsonl", purpose: str = "fine-tune"):
    data = content.encode() if isinstance(content, str) else content
    return admin.files.create(file=(name, data), purpose=purpose)


def post(server, key: str = "admin-key", **arguments) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}", **arguments.pop("headers", {})}
    return httpx.post(f"{server.url}/v1/files", headers=headers, timeout=30, **arguments)


def test_a_file_comes_back_byte_for_byte_until_it_is_deleted(admin):
    content = (LINE * 20_000).encode()[:2_500_000]  # ends in half a line; longer than one piece
    content = content.decode("utf-8", "ignore").encode()
    made = upload(admin, content, "データ.jsonl")
    assert (made.object, made.purpose, made.status) == ("file", "fine-tune", "processed")
    assert (made.bytes, made.filename) == (len(content), "データ.jsonl")
    assert made.sha256 == hashlib.sha256(content).hexdigest()
    assert admin.files.retrieve(made.id) == made
    assert admin.files.content(made.id).read() == content
    assert admin.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        admin.files.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        admin.files.content(made.id)


def test_lists_are_paged(admin):
    ids = [upload(admin).id for _ in range(3)]
    newest = [file.id for file in admin.files.list(limit=2).data]
    assert newest == ids[:0:-1]
    page = admin.files.list(limit=2, after=newest[-1])
    assert page.data[0].id == ids[0]
    listed = [file.id for file in admin.files.list(limit=1, order="asc")]
    assert [i for i in listed if i in ids] == ids
    batches = {file.id for file in admin.files.list(purpose="batch")}
    assert batches.isdisjoint(ids)
    with pytest.raises(openai.BadRequestError) as caught:
        admin.files.list(after="file-nowhere")
    assert caught.value.param == "after"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        ("日本語".encode("utf-16"), "UTF-16"),
        ('{"a": 1}\n'.encode("utf-16-le"), "zero"),
        (b"GIF89a\x00\x01", "zero"),
        (LINE.encode() + b"\xff\xfe caf\xe9", "not UTF-8"),
        (LINE.encode()[:-10] + "今".encode()[:2], "not UTF-8"),
    ],
)
def test_what_is_no_text_is_refused(admin, content, reason):
    before = len(admin.files.list().data)
    with pytest.raises(openai.BadRequestError, match=reason) as caught:
        upload(admin, content)
    assert (caught.value.param, caught.value.code) == ("file", "invalid_file")
    assert len(admin.files.list().data) == before


def test_an_oversized_file_is_refused_and_other_bodies_stay_bounded(admin, admin_server):
    for size in (3_000_001, 4_000_000):  # noticed while it is read, and by its declared length
        with pytest.raises(openai.APIStatusError) as caught:
            upload(admin, b"x" * size)
        assert caught.value.status_code == 413
        assert "max_file_bytes" in caught.value.message
    body = {"name": "x" * 1_100_000, "target": "tiny"}
    answer = httpx.post(
        f"{admin_server.url}/admin/aliases",
        json=body,
        headers={"Authorization": "Bearer admin-key"},
    )
    assert answer.status_code == 413


def test_malformed_forms_name_their_fault(admin, admin_server):
    part = ("a.jsonl", LINE.encode())
    form = {"Content-Type": "multipart/form-data"}
    cut = {"Content-Type": "multipart/form-data; boundary=b"}
    cases = [
        ({"json": {"purpose": "fine-tune"}}, None),
        ({"files": {"file": part}}, "purpose"),
        ({"files": {"file": part}, "data": {"purpose": "vision"}}, "purpose"),
        ({"files": {"file": part}, "data": {"purpose": "x" * 2000}}, "purpose"),
        ({"files": {"other": part}, "data": {"purpose": "fine-tune"}}, "other"),
        ({"files": [("file", part), ("file", part)], "data": {"purpose": "fine-tune"}}, "file"),
        ({"files": {"purpose": (None, "fine-tune")}}, "file"),
        ({"content": b"--b\r\nbroken", "headers": cut}, None),
        ({"content": b"--b\r\n", "headers": form}, None),
    ]  # fmt: skip
    for arguments, param in cases:
        answer = post(admin_server, **arguments)
        assert answer.status_code == 400, arguments
        assert answer.json()["error"]["param"] == param
        assert answer.json()["error"]["code"]


def test_a_file_is_kept_as_long_as_its_client_says(admin, admin_server):
    hour = {"anchor": "created_at", "seconds": 3600}
    made = admin.files.create(file=("a", LINE.encode()), purpose="fine-tune", expires_after=hour)
    assert made.expires_at == made.created_at + 3600
    assert admin.files.retrieve(made.id).expires_at == made.expires_at
    for wrong, param in (
        ({"seconds": "3600"}, "anchor"),
        ({"anchor": "now", "seconds": "3600"}, "anchor"),
        ({"anchor": "created_at"}, "seconds"),
        ({"anchor": "created_at", "seconds": "3599"}, "seconds"),
        ({"anchor": "created_at", "seconds": "2592001"}, "seconds"),
        ({"anchor": "created_at", "seconds": "4e3"}, "seconds"),
        ({"anchor": "created_at", "seconds": "9" * 2000}, "seconds"),
    ):
        form = {"purpose": "fine-tune"}
        form |= {f"expires_after[{name}]": value for name, value in wrong.items()}
        answer = post(admin_server, files={"file": ("a", LINE.encode())}, data=form)
        assert answer.status_code == 400, wrong
        assert answer.json()["error"]["param"] == f"expires_after[{param}]"


def test_only_the_admin_key_opens_the_routes(admin_server):
    for path in ("/v1/files/a/report", "/admin/aliases", "/admin/adapters", "/admin/status"):
        url = f"{admin_server.url}{path}"
        codes = [
            httpx.get(url, headers={"Authorization": value} if value else {}).status_code
            for value in ("", "Bearer wrong", "Bearer chat-key", "admin-key", "Bearer admin-key")
        ]
        assert codes == [401, 401, 403, 401, 404 if "report" in path else 200]
    form = {"files": {"file": LINE.encode()}, "data": {"purpose": "fine-tune"}}
    assert post(admin_server, "chat-key", **form).status_code == 403


def test_without_an_admin_key_the_routes_are_closed_to_everybody(server):
    for path in ("/v1/files/a/report", "/admin/status"):
        for key in ("anything", "admin-key"):
            headers = {"Authorization": f"Bearer {key}"}
            answer = httpx.get(f"{server.url}{path}", headers=headers)
            assert answer.status_code == 403
            assert "HAGANE_ADMIN_KEY" in answer.json()["error"]["message"]


def test_the_admin_key_may_chat_too(admin):
    answer = admin.completions.create(model="tiny", prompt="Once", max_tokens=2)
    assert answer.choices[0].text is not None


def test_admin_routes_on_a_listener_of_their_own(narrow_server, admin_listener):
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    assert httpx.get(f"{narrow_server.url}/admin/status", headers=headers).status_code == 404
    own = f"http://127.0.0.1:{admin_listener}"
    form = {"files": {"file": LINE.encode()}, "data": {"purpose": "fine-tune"}}
    assert post(narrow_server, **form).status_code == 403
    made = httpx.post(f"{own}/v1/files", headers=headers, **form).json()
    here = f"{narrow_server.url}/v1/files/{made['id']}"
    assert httpx.get(here, headers=headers).status_code == 404
    assert httpx.get(f"{own}/v1/files").status_code == 401
    status = httpx.get(f"{own}/admin/status", headers=headers).json()
    assert (status["model"], status["engine"]["state"]) == ("tiny", "ready")
