"""Files in parts over HTTP: what was answered is kept, and the whole is what was announced."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from starlette.testclient import TestClient

from tunewright.api.http.app import build
from tunewright.api.http.context import ServiceContext
from tunewright.config import RetentionOptions, Settings, embedded_base_path
from tunewright.registry.workspace import Workspace
from tunewright.scheduler.retention import Retention
from tunewright.store.store import Store
from tunewright.store.tables import uploads

UPLOADS = "/v1/uploads"
CONTENT = b'{"prompt": "a", "completion": "b"}\n' * 10


async def _control(_: dict[str, Any]) -> dict[str, Any]:
    return {}


@pytest.fixture(scope="module")
def built() -> dict[str, Any]:
    return {}


@pytest.fixture
def api(built: dict[str, Any], store: Store, data: Workspace) -> TestClient:
    settings = Settings(data_dir=data.path, base=[f"tiny={embedded_base_path()}"], max_upload="1MiB")
    if not built:
        built["server"], _ = build(settings, store)
    built["server"].app.state.context = ServiceContext(settings, store, data, _control)
    return TestClient(built["server"].app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


def create(api: TestClient, size: int = len(CONTENT), **fields: Any) -> Any:
    body = {"filename": "rows.jsonl", "purpose": "batch", "bytes": size, "mime_type": "text/jsonl", **fields}
    return api.post(UPLOADS, json=body)


def add(api: TestClient, upload: str, part: bytes) -> Any:
    return api.post(f"{UPLOADS}/{upload}/parts", files={"data": ("part", part)})


def complete(api: TestClient, upload: str, *parts: str, **fields: Any) -> Any:
    return api.post(f"{UPLOADS}/{upload}/complete", json={"part_ids": parts, **fields})


def code(response: Any, status: int = 400) -> str:
    assert response.status_code == status, response.text
    return str(response.json()["error"]["code"])


def left(data: Workspace) -> list[Path]:
    return [*data.uploads.rglob("*"), *data.tmp.iterdir()]


def test_parts_become_the_file_in_the_named_order(api: TestClient, store: Store, data: Workspace) -> None:
    made = create(api, expires_after={"anchor": "created_at", "seconds": 7200}).json()
    assert (made["object"], made["status"], made["file"]) == ("upload", "pending", None)
    assert made["expires_at"] - made["created_at"] == 3600
    second, first, _unused = (
        add(api, made["id"], part).json() for part in (CONTENT[50:], CONTENT[:50], b"x")
    )
    assert (first["object"], first["upload_id"]) == ("upload.part", made["id"])
    parts = (first["id"], second["id"])
    answers = [
        complete(api, made["id"], *parts, md5=hashlib.md5(CONTENT).hexdigest().upper()) for _ in range(2)
    ]
    assert [answer.status_code for answer in answers] == [200, 200], answers[0].text
    assert answers[0].json() == answers[1].json(), "a client repeats what was not answered"
    done = answers[0].json()
    file = done["file"]
    assert (done["status"], file["filename"], file["purpose"]) == ("completed", "rows.jsonl", "batch")
    assert (file["bytes"], file["sha256"]) == (len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    assert (file["status"], file["expires_at"] - file["created_at"]) == ("processed", 7200)
    assert api.get(f"/v1/files/{file['id']}/content").content == CONTENT
    assert left(data) == []
    assert code(complete(api, made["id"], first["id"])) == "upload_not_pending"
    assert code(add(api, made["id"], b"x")) == "upload_not_pending"
    assert code(api.post(f"{UPLOADS}/{made['id']}/cancel")) == "upload_not_pending"


def test_rows_for_training_are_checked_as_those_of_others(api: TestClient) -> None:
    made = create(api, 2, purpose="fine-tune").json()
    part = add(api, made["id"], b"{}").json()
    file = complete(api, made["id"], part["id"]).json()["file"]
    assert (file["purpose"], file["status"]) == ("fine-tune", "error")


def test_what_differs_from_the_announcement_is_refused_and_can_be_mended(
    api: TestClient, data: Workspace
) -> None:
    id = create(api, 4).json()["id"]
    one, two = (add(api, id, part).json()["id"] for part in (b"ab", b"cd"))
    assert code(complete(api, id, one)) == "wrong_size"
    assert code(complete(api, id, one, one)) == "invalid_value"
    assert code(complete(api, id, one, "part-none")) == "part_not_found"
    assert code(complete(api, id, one, two, md5="0" * 32)) == "checksum_mismatch"
    assert code(add(api, id, b"")) == "invalid_value"
    assert sorted(path.name for path in left(data)) == sorted([id, one, two])
    assert complete(api, id, two, one).json()["file"]["bytes"] == 4


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"bytes": 0}, "bytes"),
        ({"bytes": 2**20 + 1}, "bytes"),
        ({"purpose": "vision"}, "purpose"),
        ({"filename": ""}, "filename"),
        ({"expires_after": {"anchor": "created_at", "seconds": 1}}, "expires_after.seconds"),
    ],
)
def test_what_cannot_be_uploaded_is_refused_at_once(
    api: TestClient, fields: dict[str, Any], param: str
) -> None:
    answer = create(api, **fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_a_path_in_the_name_is_left_out(api: TestClient) -> None:
    assert create(api, filename="../../etc/a\tb").json()["filename"] == "ab"


def test_parts_are_limited(api: TestClient, data: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunewright.api.uploads.parts.PART_LIMIT", 10)
    monkeypatch.setattr("tunewright.api.uploads.routes._MOST_PENDING", 1)
    id = create(api, 1).json()["id"]
    assert code(create(api, 1), 429) == "too_many_uploads"
    assert add(api, id, b"x" * 12).status_code == 200
    assert code(add(api, id, b"x")) == "upload_too_large", "nobody fills the disk with parts of no use"
    assert len(left(data)) == 2
    assert code(add(api, id, b"x" * 3 * 2**20), 413) == "too_large"
    assert code(api.post(f"{UPLOADS}/{id}/parts", files={"data": b"x", "more": b"x"})) == "unknown_parameter"
    assert code(add(api, "upload-none", b"x"), 404) == "upload_not_found"
    assert code(add(api, "..", b"x"), 404)


def test_a_cancelled_one_leaves_nothing(api: TestClient, data: Workspace) -> None:
    id = create(api).json()["id"]
    part = add(api, id, b"x").json()["id"]
    for _ in range(2):
        assert api.post(f"{UPLOADS}/{id}/cancel").json()["status"] == "cancelled"
    assert left(data) == []
    assert code(complete(api, id, part)) == "upload_not_pending"


def test_it_expires_and_is_removed(api: TestClient, store: Store, data: Workspace) -> None:
    kept, old = create(api, 1).json()["id"], create(api, 1).json()["id"]
    part = add(api, old, b"x").json()["id"]
    add(api, kept, b"x")
    with store.database.begin() as connection:
        connection.execute(update(uploads).where(uploads.c.id == old).values(expires_at=time.time() - 1))
    assert code(complete(api, old, part)) == "upload_not_pending"
    found = store.uploads.get(old)
    assert found is not None
    assert found.state == "expired"
    (data.uploads / "upload-unknown").mkdir()
    Retention(RetentionOptions(), store, data).round()
    assert [path.name for path in data.uploads.iterdir()] == [kept]
    assert store.uploads.get(old) is not None
    Retention(RetentionOptions(), store, data, lambda: time.time() + 90_000).round()
    assert store.uploads.get(old) is None
    assert store.uploads.get(kept) is not None


def test_of_a_restored_backup_none_goes_on(api: TestClient, store: Store) -> None:
    id = create(api).json()["id"]
    store.uploads.forget()
    assert code(add(api, id, b"x")) == "upload_not_pending"
