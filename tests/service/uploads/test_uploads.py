"""Uploads in parts through the stock SDK, sync and async, against the real store."""

import asyncio
import hashlib
import io
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from sqlalchemy import text

from service.contracts.ids import ProjectId
from service.contracts.layout import project_prefix
from service.settings import ServiceSettings
from tests.service.conftest import Service

LINE = b'{"prompt":"a","completion":"b"}\n'
PART = 100_000


@pytest.fixture(scope="module")
def service_settings(service_settings: ServiceSettings) -> ServiceSettings:
    return service_settings.model_copy(update={"max_part_bytes": PART, "max_upload_bytes": 5_000_000})


@pytest.fixture(scope="module")
def tenant(make_project: Callable[[str], tuple[str, str]]) -> tuple[str, str]:
    return make_project("uploads")


@pytest.fixture(scope="module")
def api(client: Callable[[str], openai.OpenAI], tenant: tuple[str, str]) -> openai.OpenAI:
    return client(tenant[1])


def begun(api: openai.OpenAI, size: int, **fields: Any) -> Any:
    given = {"filename": "train.jsonl", "mime_type": "text/jsonl", "purpose": "user_data", **fields}
    return api.uploads.create(bytes=size, **given)


def sent(api: openai.OpenAI, upload: str, *contents: bytes) -> list[str]:
    return [api.uploads.parts.create(upload, data=content).id for content in contents]


def refused(call: Callable[[], Any]) -> tuple[str | None, str | None]:
    with pytest.raises(openai.BadRequestError) as caught:
        call()
    return caught.value.code, caught.value.param


def test_an_upload_lives_as_in_openais_api(api: openai.OpenAI) -> None:
    upload = begun(api, 7)
    assert upload.model_dump() == {
        "id": upload.id,
        "object": "upload",
        "bytes": 7,
        "created_at": upload.created_at,
        "expires_at": upload.created_at + 3600,
        "filename": "train.jsonl",
        "purpose": "user_data",
        "status": "pending",
        "file": None,
    }
    part = api.uploads.parts.create(upload.id, data=b"one ")
    assert part.model_dump() == {
        "id": part.id,
        "object": "upload.part",
        "created_at": part.created_at,
        "upload_id": upload.id,
    }
    (other,) = sent(api, upload.id, b"two")
    done = api.uploads.complete(upload.id, part_ids=[part.id, other])
    assert (done.id, done.status) == (upload.id, "completed")
    assert done.file is not None
    assert done.file == api.files.retrieve(done.file.id)
    assert (done.file.bytes, done.file.filename, done.file.status) == (7, "train.jsonl", "processed")
    assert api.files.content(done.file.id).read() == b"one two"


def test_parts_come_at_once_and_in_any_order(service: Service, api: openai.OpenAI) -> None:
    content = random.Random(1).randbytes(10 * PART - 1)
    pieces = [content[start : start + PART] for start in range(0, len(content), PART)]
    upload = begun(api, len(content))
    shuffled = random.Random(2).sample(range(10), 10)
    with ThreadPoolExecutor(5) as threads:
        ids = dict(zip(shuffled, threads.map(lambda n: sent(api, upload.id, pieces[n])[0], shuffled), strict=True))
    ordered = [ids[number] for number in range(10)]
    done = api.uploads.complete(upload.id, part_ids=ordered, md5=hashlib.md5(content).hexdigest())
    assert done.file is not None
    assert api.files.content(done.file.id).read() == content


def test_a_file_is_sent_in_parts_by_the_sdk(api: openai.OpenAI, tmp_path: Path) -> None:
    content = LINE * 10_000
    path = tmp_path / "tune.jsonl"
    path.write_bytes(content)
    done = api.uploads.upload_file_chunked(
        file=path, mime_type="text/jsonl", purpose="fine-tune", part_size=PART, md5=hashlib.md5(content).hexdigest()
    )
    assert done.file is not None
    assert (done.file.status, done.file.purpose, done.file.filename) == ("processed", "fine-tune", "tune.jsonl")
    assert api.files.content(done.file.id).read() == content


async def test_the_async_sdk_does_the_same(service: Service, tenant: tuple[str, str]) -> None:
    async with openai.AsyncOpenAI(api_key=tenant[1], base_url=f"{service.url}/v1", max_retries=0) as api:
        upload = await api.uploads.create(bytes=4, filename="f", mime_type="text/plain", purpose="assistants")
        parts = await asyncio.gather(*(api.uploads.parts.create(upload.id, data=byte) for byte in (b"ab", b"cd")))
        done = await api.uploads.complete(upload.id, part_ids=[part.id for part in parts])
        assert done.file is not None
        assert (await api.files.content(done.file.id)).content == b"abcd"
        other = await api.uploads.create(bytes=4, filename="f", mime_type="text/plain", purpose="vision")
        assert (await api.uploads.cancel(other.id)).status == "cancelled"
        chunked = await api.uploads.upload_file_chunked(
            file=b"x" * 250, filename="x", bytes=250, mime_type="text/plain", purpose="user_data", part_size=100
        )
        assert chunked.file is not None
        assert chunked.file.bytes == 250


def test_a_part_that_is_sent_again_under_its_key_is_one_part(
    service: Service, api: openai.OpenAI, tenant: tuple[str, str]
) -> None:
    """However often, at once or later; so is a stock client's retry, which has no key."""
    upload = begun(api, 8)

    def send(content: bytes, **headers: str) -> httpx2.Response:
        headers = {
            "authorization": f"Bearer {tenant[1]}",
            **{name.replace("_", "-"): headers[name] for name in headers},
        }
        url = f"{service.url}/v1/uploads/{upload.id}/parts"
        return httpx2.post(url, files={"data": ("data", content)}, headers=headers, timeout=30)

    with ThreadPoolExecutor(8) as threads:
        crowd = list(threads.map(lambda _: send(b"abc", idempotency_key="first"), range(8)))
    assert {answer.status_code for answer in crowd} == {200}
    assert len({answer.content for answer in crowd}) == 1
    prefix = f"{project_prefix(ProjectId(tenant[0]))}uploads/{upload.id}/"
    stored = service.resources.store.keys(prefix)
    assert stored == [prefix + crowd[0].json()["id"]]
    later = send(b"abc", idempotency_key="first")
    assert (later.content, later.headers["idempotent-replayed"]) == (crowd[0].content, "true")
    other = send(b"defgh", idempotency_key="first")
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
    second = send(b"defgh")
    assert send(b"defgh", x_stainless_retry_count="1").content == second.content
    assert send(b"defgh").content != second.content
    ids = [crowd[0].json()["id"], second.json()["id"]]
    file = api.uploads.complete(upload.id, part_ids=ids).file
    assert file is not None
    assert api.files.content(file.id).read() == b"abcdefgh"


def test_completing_again_gives_the_same_file(api: openai.OpenAI, admin: httpx2.Client) -> None:
    upload = begun(api, 6)
    ids = sent(api, upload.id, b"abc", b"def")
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: api.uploads.complete(upload.id, part_ids=ids), range(4)))
    files = {answer.file.id for answer in answers if answer.file}
    assert len(files) == 1
    noted = admin.get("/organization/audit_logs", params={"resource_ids[]": list(files)}).json()["data"]
    assert [each["type"] for each in noted] == ["file.created"]
    assert api.uploads.complete(upload.id, part_ids=ids).file == answers[0].file
    assert [file.id for file in api.files.list() if file.bytes == 6] == list(files)
    assert refused(lambda: api.uploads.complete(upload.id, part_ids=ids[::-1]))[0] == "upload_completed"
    assert refused(lambda: api.uploads.cancel(upload.id))[0] == "upload_completed"
    assert refused(lambda: sent(api, upload.id, b"x"))[0] == "upload_completed"


def test_a_cancelled_upload_takes_nothing_more(api: openai.OpenAI) -> None:
    upload = begun(api, 3)
    ids = sent(api, upload.id, b"abc")
    for _ in range(2):
        assert api.uploads.cancel(upload.id).status == "cancelled"
    assert refused(lambda: api.uploads.complete(upload.id, part_ids=ids))[0] == "upload_cancelled"
    assert refused(lambda: sent(api, upload.id, b"x"))[0] == "upload_cancelled"


def test_an_expired_upload_takes_nothing_more(service: Service, api: openai.OpenAI) -> None:
    upload = begun(api, 3)
    ids = sent(api, upload.id, b"abc")

    async def age() -> None:
        async with service.resources.database.control() as session:
            await session.execute(text("update uploads set expires_at = now() where id = :id"), {"id": upload.id})

    service.call(age())
    for call in (
        lambda: api.uploads.complete(upload.id, part_ids=ids),
        lambda: sent(api, upload.id, b"x"),
        lambda: api.uploads.cancel(upload.id),
    ):
        assert refused(call)[0] == "upload_expired"


def test_what_does_not_fit_together_is_refused_and_may_be_mended(api: openai.OpenAI) -> None:
    upload = begun(api, 6)
    one, two = sent(api, upload.id, b"abc", b"def")
    (foreign,) = sent(api, begun(api, 3).id, b"ghi")
    for ids, code in (
        ([one], "invalid_bytes"),
        ([one, one], "invalid_part"),
        ([one, foreign], "invalid_part"),
        ([one, "part_x"], "invalid_part"),
    ):
        assert refused(lambda ids=ids: api.uploads.complete(upload.id, part_ids=ids)) == (code, "part_ids")
    md5 = hashlib.md5(b"abcdef").hexdigest()
    assert refused(lambda: api.uploads.complete(upload.id, part_ids=[two, one], md5=md5)) == ("md5_mismatch", "md5")
    done = api.uploads.complete(upload.id, part_ids=[one, two], md5=md5.upper())
    assert done.file is not None
    assert api.files.content(done.file.id).read() == b"abcdef"


def test_a_bad_training_file_is_refused_as_one_that_comes_whole(api: openai.OpenAI) -> None:
    before = [file.id for file in api.files.list()]
    bad, good = LINE * 3 + b"{\n" + LINE * 100, LINE * 104
    upload = begun(api, len(good) - len(LINE) + 2, purpose="fine-tune")
    ids = sent(api, upload.id, bad[:50], bad[50:])
    with pytest.raises(openai.BadRequestError) as caught:
        api.uploads.complete(upload.id, part_ids=ids)
    assert caught.value.code == "invalid_training_file"
    assert "line 4" in caught.value.message
    assert [file.id for file in api.files.list()] == before
    # The parts may be sent again, mended.
    mended = sent(api, upload.id, LINE * 103 + b" \n")
    assert api.uploads.complete(upload.id, part_ids=mended).status == "completed"


def test_a_file_in_parts_may_expire(api: openai.OpenAI) -> None:
    upload = begun(api, 1, expires_after={"anchor": "created_at", "seconds": 3600})
    file = api.uploads.complete(upload.id, part_ids=sent(api, upload.id, b"x")).file
    assert file is not None
    assert file.expires_at == file.created_at + 3600


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"bytes": 0}, "bytes"),
        ({"bytes": "7"}, "bytes"),
        ({"bytes": None}, "bytes"),
        ({"purpose": "fun"}, "purpose"),
        ({"filename": ""}, "filename"),
        ({"mime_type": None}, "mime_type"),
        ({"expires_after": {"anchor": "created_at", "seconds": 1}}, "expires_after.seconds"),
        ({"expires_after": {"seconds": 3600}}, "expires_after.anchor"),
    ],
)
def test_a_bad_field_is_named(service: Service, tenant: tuple[str, str], change: dict[str, Any], param: str) -> None:
    body = {"bytes": 7, "filename": "f", "mime_type": "text/jsonl", "purpose": "batch", **change}
    headers = {"authorization": f"Bearer {tenant[1]}"}
    answer = httpx2.post(f"{service.url}/v1/uploads", json=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_the_limits_of_sizes(service: Service, api: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        begun(api, 5_000_001)
    assert (caught.value.status_code, caught.value.code) == (413, "payload_too_large")
    upload = begun(api, 5_000_000)
    assert sent(api, upload.id, b"x" * PART)
    for size in (PART + 1, 10 * PART):
        with pytest.raises(openai.APIStatusError) as caught:
            sent(api, upload.id, b"x" * size)
        assert caught.value.status_code == 413
    small = begun(api, 10)
    sent(api, small.id, b"x" * PART)
    assert refused(lambda: sent(api, small.id, b"x" * 21)) == ("too_many_bytes", "data")


@pytest.mark.parametrize("files", [{"other": ("f", b"x")}, {"data": ("f", b"")}])
def test_a_missing_or_empty_part_is_named(service: Service, api: openai.OpenAI, files: dict[str, Any]) -> None:
    url = f"{service.url}/v1/uploads/{begun(api, 1).id}/parts"
    answer = httpx2.post(url, files=files, headers={"authorization": f"Bearer {api.api_key}"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "data")


def test_another_tenants_upload_is_like_one_that_never_was(
    service: Service,
    api: openai.OpenAI,
    client: Callable[[str], openai.OpenAI],
    make_project: Callable[[str], tuple[str, str]],
) -> None:
    stranger = client(make_project("stranger")[1])
    upload = begun(api, 3)
    (part,) = sent(api, upload.id, b"abc")
    unknown = "upload_" + "a" * (len(upload.id) - 7)

    def answers(upload_id: str) -> list[str]:
        calls = (
            lambda: stranger.uploads.parts.create(upload_id, data=io.BytesIO(b"x")),
            lambda: stranger.uploads.complete(upload_id, part_ids=[part]),
            lambda: stranger.uploads.cancel(upload_id),
        )
        found = []
        for call in calls:
            with pytest.raises(openai.NotFoundError) as caught:
                call()
            found.append(caught.value.message.replace(upload_id, "ID"))
        return found

    assert answers(upload.id) == answers(unknown)
    own = begun(stranger, 3)
    assert refused(lambda: stranger.uploads.complete(own.id, part_ids=[part]))[0] == "invalid_part"
    assert api.uploads.complete(upload.id, part_ids=[part]).status == "completed"


def test_a_part_that_was_damaged_in_the_store_is_named(
    service: Service, api: openai.OpenAI, tenant: tuple[str, str]
) -> None:
    upload = begun(api, 3)
    ids = sent(api, upload.id, b"abc")
    (key,) = service.resources.store.keys(f"{project_prefix(ProjectId(tenant[0]))}uploads/{upload.id}/")
    service.resources.store.put(key, b"abd")
    assert refused(lambda: api.uploads.complete(upload.id, part_ids=ids)) == ("damaged_part", "part_ids")
    again = sent(api, upload.id, b"abc")
    assert api.uploads.complete(upload.id, part_ids=again).status == "completed"
