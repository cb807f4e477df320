"""The files routes through the stock SDK, against the real store."""

import hashlib
import io
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx2
import openai
import psutil
import pytest
from sqlalchemy import text

from service.contracts.ids import FileId, ProjectId
from service.contracts.layout import file_key, project_prefix
from tests.service.conftest import Service

LINE = b'{"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":"Hello"}]}\n'
LINES = LINE * 10


@pytest.fixture(scope="module")
def tenant(make_project: Callable[[str], tuple[str, str]]) -> tuple[str, str]:
    return make_project("tenant")


@pytest.fixture(scope="module")
def api(client: Callable[[str], openai.OpenAI], tenant: tuple[str, str]) -> openai.OpenAI:
    return client(tenant[1])


@pytest.fixture(scope="module")
def stranger(client: Callable[[str], openai.OpenAI], make_project: Callable[[str], tuple[str, str]]) -> openai.OpenAI:
    return client(make_project("stranger")[1])


def created(api: openai.OpenAI, content: bytes = LINES, name: str = "train.jsonl", **fields: Any) -> Any:
    return api.files.create(file=(name, io.BytesIO(content)), purpose=fields.pop("purpose", "fine-tune"), **fields)


def stored(service: Service, project: str) -> list[str]:
    return service.resources.store.keys(project_prefix(ProjectId(project)))


def test_a_file_lives_as_in_openais_api(api: openai.OpenAI) -> None:
    file = created(api)
    assert file.id.startswith("file-")
    assert file.model_dump() == {
        "id": file.id,
        "object": "file",
        "bytes": len(LINES),
        "created_at": file.created_at,
        "expires_at": None,
        "filename": "train.jsonl",
        "purpose": "fine-tune",
        "status": "processed",
        "status_details": None,
    }
    assert abs(file.created_at - time.time()) < 60
    assert api.files.retrieve(file.id) == file
    assert api.files.wait_for_processing(file.id, poll_interval=0.01) == file
    assert api.files.content(file.id).read() == LINES
    assert api.files.delete(file.id).model_dump() == {"id": file.id, "object": "file", "deleted": True}
    for call in (api.files.retrieve, api.files.content, api.files.delete):
        with pytest.raises(openai.NotFoundError):
            call(file.id)


def test_a_file_and_its_deletion_are_in_the_audit_log_once(
    admin: httpx2.Client, api: openai.OpenAI, tenant: tuple[str, str]
) -> None:
    file = created(api, name="secret-name.jsonl")
    api.files.delete(file.id)
    with pytest.raises(openai.NotFoundError):
        api.files.delete(file.id)
    answer = admin.get("/organization/audit_logs", params={"resource_ids[]": file.id})
    entries = answer.json()["data"]
    assert [(each["type"], each["project"]["id"], each["actor"]["type"]) for each in entries] == [
        ("file.deleted", tenant[0], "api_key"),
        ("file.created", tenant[0], "api_key"),
    ]
    assert entries[1]["file.created"]["data"] == {"purpose": "fine-tune", "bytes": len(LINES)}
    assert "secret-name" not in answer.text


def test_the_row_says_what_the_bytes_are(service: Service, api: openai.OpenAI, tenant: tuple[str, str]) -> None:
    file = created(api)
    query = text("select sha256, examples, bytes, purged_at from files where id = :id")

    async def row() -> Any:
        async with service.resources.database.control() as session:
            return (await session.execute(query, {"id": file.id})).one()

    assert service.call(row()) == (hashlib.sha256(LINES).hexdigest(), 10, len(LINES), None)
    assert service.resources.store.get(file_key(ProjectId(tenant[0]), FileId(file.id))) == LINES


@pytest.mark.parametrize("purpose", ["user_data", "assistants", "vision", "evals"])
def test_other_purposes_are_stored_as_they_are(api: openai.OpenAI, purpose: str) -> None:
    content = b"\0\xff not JSON lines"
    file = created(api, content, "x.bin", purpose=purpose)
    assert (file.purpose, file.status) == (purpose, "processed")
    assert api.files.content(file.id).read() == content


def test_lists_come_in_pages_both_ways(
    client: Callable[[str], openai.OpenAI], make_project: Callable[[str], tuple[str, str]]
) -> None:
    api = client(make_project("pages")[1])
    empty = api.files.list()
    assert (empty.data, empty.has_more, empty.first_id, empty.last_id) == ([], False, None, None)  # type: ignore[attr-defined]
    made = [created(api, purpose="fine-tune" if number % 2 else "batch").id for number in range(5)]
    assert [file.id for file in api.files.list()] == made[::-1]
    for limit in (1, 2, 5):
        assert [file.id for file in api.files.list(limit=limit)] == made[::-1]
        assert [file.id for file in api.files.list(limit=limit, order="asc")] == made
    assert [file.id for file in api.files.list(purpose="fine-tune")] == [made[3], made[1]]
    page = api.files.list(limit=2, after=made[3])
    assert ([file.id for file in page.data], page.has_more) == ([made[2], made[1]], True)
    api.files.delete(made[2])
    # A page may begin after a file that was deleted since.
    assert [file.id for file in api.files.list(after=made[2]).data] == [made[1], made[0]]


@pytest.mark.parametrize(
    ("query", "param"),
    [({"limit": 0}, "limit"), ({"limit": 10001}, "limit"), ({"order": "up"}, "order"), ({"after": "file-x"}, "after")],
)
def test_a_bad_query_names_its_parameter(api: openai.OpenAI, query: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        api.files.list(**query)
    assert caught.value.param == param


def test_another_tenants_file_is_like_one_that_never_was(
    service: Service, api: openai.OpenAI, stranger: openai.OpenAI
) -> None:
    file = created(api)
    unknown = "file-" + "a" * (len(file.id) - 5)
    headers = {"authorization": f"Bearer {stranger.api_key}"}
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/content")):
        answers = [
            httpx2.request(method, f"{service.url}/v1/files/{file_id}{path}", headers=headers)
            for file_id in (file.id, unknown)
        ]
        assert [answer.status_code for answer in answers] == [404, 404]
        assert answers[0].text.replace(file.id, "ID") == answers[1].text.replace(unknown, "ID")
    assert stranger.files.list().data == []
    with pytest.raises(openai.BadRequestError):
        stranger.files.list(after=file.id)
    assert api.files.content(file.id).read() == LINES


def test_an_invalid_training_file_is_refused_with_its_lines(
    service: Service, api: openai.OpenAI, tenant: tuple[str, str]
) -> None:
    before = stored(service, tenant[0])
    with pytest.raises(openai.BadRequestError) as caught:
        created(api, LINE + b'{"messages":[]}\n' + LINE + b"{\n")
    error = caught.value
    assert (error.code, error.param, error.type) == ("invalid_training_file", "file", "invalid_request_error")
    assert "line 2: " in error.message
    assert "line 4: " in error.message
    assert isinstance(error.body, dict)
    assert [(problem["line"], problem["code"]) for problem in error.body["problems"]] == [
        (2, "empty_messages"),
        (4, "invalid_json"),
    ]
    assert stored(service, tenant[0]) == before


def test_a_line_of_5_mib_is_refused_by_number(api: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        created(api, LINE + LINE.replace(b"Hello", b"x" * (5 << 20)) + LINE)
    assert "line 2: is longer than 1048576 bytes" in caught.value.message


def test_few_examples_are_the_jobs_business(api: openai.OpenAI) -> None:
    assert created(api, LINE).status == "processed"


def test_a_file_may_expire(service: Service, api: openai.OpenAI) -> None:
    file = created(api, expires_after={"anchor": "created_at", "seconds": 3600})
    assert file.expires_at == file.created_at + 3600

    async def age() -> None:
        async with service.resources.database.control() as session:
            await session.execute(text("update files set expires_at = now() where id = :id"), {"id": file.id})

    service.call(age())
    assert file.id not in {found.id for found in api.files.list()}
    for call in (api.files.retrieve, api.files.content, api.files.delete):
        with pytest.raises(openai.NotFoundError):
            call(file.id)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": "mischief"}, "purpose"),
        ({}, "purpose"),
        ({"purpose": "batch", "expires_after[anchor]": "created_at"}, "expires_after"),
        ({"purpose": "batch", "expires_after[seconds]": "3600"}, "expires_after"),
        (
            {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "3599"},
            "expires_after[seconds]",
        ),
        (
            {"purpose": "batch", "expires_after[anchor]": "now", "expires_after[seconds]": "3600"},
            "expires_after[anchor]",
        ),
    ],
)
def test_a_bad_field_is_named(service: Service, api: openai.OpenAI, fields: dict[str, str], param: str) -> None:
    response = upload_raw(service, api, fields, {"file": ("f.jsonl", LINES)})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("files", [None, {"file": ("f.jsonl", b"")}, {"other": ("f.jsonl", LINES)}])
def test_a_missing_or_empty_file_is_named(service: Service, api: openai.OpenAI, files: dict[str, Any] | None) -> None:
    files = files or {"purpose2": (None, b"x")}
    response = upload_raw(service, api, {"purpose": "fine-tune"}, files)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "file")


def upload_raw(service: Service, api: openai.OpenAI, fields: dict[str, str], files: Any) -> httpx2.Response:
    headers = {"authorization": f"Bearer {api.api_key}"}
    return httpx2.post(f"{service.url}/v1/files", data=fields, files=files, headers=headers, timeout=60)


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("application/json", b"{}", 415),
        ("application/octet-stream", LINES, 415),
        ("multipart/form-data", LINES, 400),
        ("multipart/form-data; boundary=x", b"no boundary here", 400),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n',
            400,
        ),
    ],
)
def test_a_body_that_is_no_form_is_refused(
    service: Service, api: openai.OpenAI, kind: str, body: bytes, status: int
) -> None:
    headers = {"authorization": f"Bearer {api.api_key}", "content-type": kind}
    response = httpx2.post(f"{service.url}/v1/files", content=body, headers=headers)
    assert response.status_code == status
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_a_filename_survives_the_way_there_and_back(service: Service, api: openai.OpenAI) -> None:
    file = created(api, name="päckchen'; x=✓.jsonl")
    assert file.filename == "päckchen'; x=✓.jsonl"
    headers = {"authorization": f"Bearer {api.api_key}"}
    response = httpx2.get(f"{service.url}/v1/files/{file.id}/content", headers=headers)
    assert response.headers["content-disposition"].startswith("attachment; filename*=utf-8''p%C3%A4ck")


def test_nobody_uploads_without_a_key(service: Service) -> None:
    """Refused before the body is read: otherwise anyone could fill the disk with temporary files."""
    sent = threading.Event()

    def body() -> Any:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        sent.set()
        yield b"x" * 1024

    headers = {"content-type": "multipart/form-data; boundary=x", "authorization": "Bearer sk-weft-none"}
    response = httpx2.post(f"{service.url}/v1/files", content=body(), headers=headers)
    assert response.status_code == 401


def test_a_damaged_object_is_never_delivered_whole(
    service: Service, api: openai.OpenAI, tenant: tuple[str, str]
) -> None:
    content = random.Random(3).randbytes(3 << 20)
    file = created(api, content, purpose="batch")
    key = file_key(ProjectId(tenant[0]), FileId(file.id))
    service.resources.store.put(key, content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises((openai.APIConnectionError, httpx2.RemoteProtocolError)):
        api.files.content(file.id).read()
    service.resources.store.put(key, content)
    assert api.files.content(file.id).read() == content


def test_a_large_file_passes_without_filling_memory(service: Service, api: openai.OpenAI) -> None:
    content = LINE.replace(b"Hello", b"x" * 1000) * 40_000
    process = psutil.Process()
    before, peak, done = process.memory_info().rss, 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        file = created(api, content)
    finally:
        done.set()
        watcher.join()
    assert file.bytes == len(content)
    digest = hashlib.sha256()
    with api.files.with_streaming_response.content(file.id) as response:
        for piece in response.iter_bytes():
            digest.update(piece)
    assert digest.hexdigest() == hashlib.sha256(content).hexdigest()
    # The client, in this same process, holds its own copies while it sends; the service adds a bounded buffer.
    assert peak - before < 2 * len(content)
