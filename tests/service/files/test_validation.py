"""The report on a file: its lines' problems, lengths, duplicates, and what it shares with another file."""

import io
import json
from collections.abc import Callable
from typing import Any

import httpx2
import openai
import pytest
from sqlalchemy import text

from service.files import validation
from service.files.fixes import OTHER, fix_of
from service.files.inspection import Inspection
from tests.service.conftest import Service
from tests.service.files.test_datasets import REFUSED, REFUSED_PREFERENCES


@pytest.fixture(scope="module")
def tenant(make_project: Callable[[str], tuple[str, str]]) -> tuple[str, str]:
    return make_project("tenant")


@pytest.fixture(scope="module")
def api(client: Callable[[str], openai.OpenAI], tenant: tuple[str, str]) -> openai.OpenAI:
    return client(tenant[1])


def line(prompt: str, completion: str = "b") -> bytes:
    return json.dumps({"prompt": prompt, "completion": completion}).encode()


def request(custom_id: Any = "a", **fields: Any) -> bytes:
    body = {"model": "m", "messages": []}
    return json.dumps(
        {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body, **fields}
    ).encode()


def created(api: openai.OpenAI, *lines: bytes, purpose: Any = "fine-tune") -> Any:
    return api.files.create(file=("f.jsonl", io.BytesIO(b"\n".join(lines) + b"\n")), purpose=purpose)


def report(api: openai.OpenAI, file: str, compare: str | None = None) -> Any:
    query = f"?compare={compare}" if compare else ""
    return api.get(f"/files/{file}/validation{query}", cast_to=object)


def forget(service: Service) -> None:
    """As if the files had come before reports were kept."""

    async def run() -> None:
        async with service.resources.database.control() as session:
            await session.execute(text("delete from file_reports"))

    service.call(run())


@pytest.mark.parametrize("kept", [True, False])
def test_the_report_on_a_good_file(service: Service, api: openai.OpenAI, kept: bool) -> None:
    file = created(api, line("a" * 39), line("b"), b' {"completion":"b", "prompt":"b"}', line("a" * 399))
    if not kept:
        forget(service)
    assert report(api, file.id) == {
        "object": "file.validation",
        "file_id": file.id,
        "purpose": "fine-tune",
        "format": "completion",
        "complete": True,
        "lines": 4,
        "valid": 4,
        "problems": [],
        "problem_counts": {},
        "tokens": {
            "method": "bytes/4",
            "model": None,
            "estimated": True,
            "total": 112,
            "mean": 28.0,
            "max": 100,
            "histogram": [
                {"up_to": 1, "examples": 2},
                {"up_to": 16, "examples": 1},
                {"up_to": 128, "examples": 1},
            ],
        },
        "duplicates": {"examples": 1, "examined": 4, "lines": [{"line": 3, "first_line": 2}]},
        "overlap": None,
    }


def test_what_two_files_share(api: openai.OpenAI) -> None:
    training = created(api, *(line(f"p{number}") for number in range(20)))
    held_out = created(api, line("q"), line("p3"), line("p19"), line("p3"))
    assert report(api, held_out.id, training.id)["overlap"] == {
        "file_id": training.id,
        "examples": 3,
        "examined": 4,
        "lines": [
            {"line": 2, "compared_line": 4},
            {"line": 3, "compared_line": 20},
            {"line": 4, "compared_line": 4},
        ],
    }
    assert report(api, held_out.id)["overlap"] is None
    assert report(api, training.id, training.id)["overlap"]["examples"] == 20


def test_a_content_is_looked_through_once(
    service: Service, api: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = created(api, line("once")), created(api, line("twice"))
    expected = report(api, first.id, other.id)

    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(validation, "_inspected", never)
    again = created(api, line("once"))
    assert report(api, again.id)["valid"] == 1
    assert report(api, again.id, other.id) == {**expected, "file_id": again.id}


def test_a_long_look_goes_on_while_the_caller_is_told_to_ask_again(
    service: Service, api: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = created(api, line("long")), created(api, line("longer"))
    with monkeypatch.context() as patch:
        patch.setattr(validation, "WAIT_SECONDS", 0.0)
        with pytest.raises(openai.InternalServerError) as caught:
            report(api, first.id, other.id)
    assert (caught.value.status_code, caught.value.code) == (503, "validation_running")
    assert float(caught.value.response.headers["retry-after"]) > 0
    assert report(api, first.id, other.id)["overlap"]["examples"] == 0


@pytest.mark.parametrize(
    ("spoiled", "code"),
    [
        (request(None), "invalid_custom_id"),
        (request(""), "invalid_custom_id"),
        (request("x" * 513), "invalid_custom_id"),
        (request("one"), "duplicate_custom_id"),
        (request(method="GET"), "invalid_method"),
        (request(url="/v1/models"), "invalid_url"),
        (request(url=["/v1/completions"]), "invalid_url"),
        (request(url="/v1/completions"), "mismatched_url"),
        (request(body="x"), "invalid_body"),
        (request(body={}), "missing_model"),
        (request("nul\0"), "nul_character"),
        (b"[]", "not_an_object"),
        (b"{", "invalid_json"),
    ],
)
def test_a_batch_file_is_kept_with_its_problems(api: openai.OpenAI, spoiled: bytes, code: str) -> None:
    content = [request("one"), request("two"), spoiled, request("three")]
    file = created(api, *content, purpose="batch")
    assert file.status == "error"
    assert "line 3" in file.status_details
    assert api.files.content(file.id).read() == b"\n".join(content) + b"\n"
    found = report(api, file.id)
    assert [(problem["line"], problem["code"]) for problem in found["problems"]] == [(3, code)]
    assert found["problems"][0]["fix"] == fix_of(code)
    assert (found["lines"], found["valid"], found["problem_counts"]) == (4, 3, {code: 1})


def test_a_good_batch_file_is_processed(api: openai.OpenAI) -> None:
    file = created(api, request("one"), request("two"), purpose="batch")
    assert (file.status, file.status_details) == ("processed", None)
    assert file.expires_at == file.created_at + 30 * 24 * 3600
    assert report(api, file.id)["format"] == "request"


def test_many_problems_are_counted_and_the_first_are_told(api: openai.OpenAI) -> None:
    file = created(api, *[b"{"] * 150, *[b"[]"] * 150, purpose="batch")
    found = report(api, file.id)
    assert found["problem_counts"] == {"invalid_json": 150, "not_an_object": 150}
    assert (len(found["problems"]), found["complete"]) == (100, True)


def test_the_look_ends_where_nearly_nothing_is_good() -> None:
    inspection = Inspection("fine-tune", 1000, patience=500)
    inspection.feed(b"{\n" * 1000)
    found = inspection.finish()
    assert (found.given_up, found.counts, len(found.problems)) == (True, {"invalid_json": 500}, 100)


@pytest.mark.parametrize("code", sorted({code for code, _ in [*REFUSED, *REFUSED_PREFERENCES]}))
def test_each_problem_of_an_example_has_a_fix(code: str) -> None:
    assert fix_of(code) != OTHER or code.startswith(("invalid_preferred", "invalid_non_preferred"))


def test_what_cannot_be_reported_on_is_named(service: Service, api: openai.OpenAI) -> None:
    tune = created(api, line("a"))
    batch = created(api, request(), purpose="batch")
    other = created(api, b"x", purpose="user_data")
    bad = ((other.id, None, "id"), (tune.id, batch.id, "compare"), (tune.id, other.id, "compare"))
    for file, compare, param in bad:
        with pytest.raises(openai.BadRequestError) as caught:
            report(api, file, compare)
        assert (caught.value.code, caught.value.param) == ("invalid_file_purpose", param)
    with pytest.raises(openai.NotFoundError):
        report(api, tune.id, "file-unknown")


def test_another_tenants_file_is_like_one_that_never_was(
    service: Service, api: openai.OpenAI, make_project: Callable[[str], tuple[str, str]]
) -> None:
    file, key = created(api, line("mine")), make_project("stranger")[1]
    own = created(service.client(key), line("mine"))
    headers = {"authorization": f"Bearer {key}"}
    unknown = "file-" + "a" * (len(file.id) - 5)
    base = f"{service.url}/v1/files/"
    for path in ("{}/validation", own.id + "/validation?compare={}"):
        answers = [httpx2.get(base + path.format(asked), headers=headers) for asked in (file.id, unknown)]
        assert [answer.status_code for answer in answers] == [404, 404]
        assert answers[0].text.replace(file.id, "ID") == answers[1].text.replace(unknown, "ID")
    # The same bytes, but a report of one's own.
    assert report(service.client(key), own.id)["file_id"] == own.id


def test_a_storage_limit_is_kept(
    service: Service, client: Callable[[str], openai.OpenAI], make_project: Callable[[str], tuple[str, str]]
) -> None:
    project, key = make_project("small")
    api = client(key)

    async def limit() -> None:
        async with service.resources.database.control() as session:
            statement = "update projects set max_storage_bytes = 100 where id = :id"
            await session.execute(text(statement), {"id": project})

    service.call(limit())
    first = created(api, b"x" * 59, purpose="user_data")
    with pytest.raises(openai.RateLimitError) as caught:
        created(api, b"x" * 59, purpose="user_data")
    assert caught.value.code == "insufficient_quota"
    assert caught.value.response.headers["x-should-retry"] == "false"
    upload = api.uploads.create(bytes=40, filename="f", mime_type="text/plain", purpose="user_data")
    for call in (
        lambda: created(api, b"x", purpose="user_data"),
        lambda: api.uploads.create(bytes=1, filename="f", mime_type="text/plain", purpose="user_data"),
    ):
        with pytest.raises(openai.RateLimitError):
            call()
    # What was announced has its room.
    part = api.uploads.parts.create(upload.id, data=b"x" * 40)
    assert api.uploads.complete(upload.id, part_ids=[part.id]).status == "completed"
    assert len(list(api.files.list())) == 2
    assert first.bytes == 60


def test_a_file_that_is_sent_again_is_the_same_file(service: Service, api: openai.OpenAI) -> None:
    def post(content: bytes, **headers: str) -> httpx2.Response:
        return httpx2.post(
            f"{service.url}/v1/files",
            data={"purpose": "user_data"},
            files={"file": ("f", content)},
            headers={"authorization": f"Bearer {api.api_key}", **headers},
        )

    keyed = {"idempotency-key": "file-1"}
    first = post(b"same", **keyed)
    assert first.status_code == 200
    assert post(b"same", **keyed).json() == first.json()
    assert post(b"other", **keyed).status_code == 422
    # Stock clients retry without a key, and say so.
    plain = post(b"plain").json()
    assert post(b"plain", **{"x-stainless-retry-count": "1"}).json() == plain
    assert post(b"plain").json()["id"] != plain["id"]
