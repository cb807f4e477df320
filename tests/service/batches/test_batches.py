"""Batches through the stock SDK: their lives, their files, what is booked, what is refused."""

import asyncio
import json
from datetime import timedelta
from typing import Any

import httpx2
import openai
import pytest
from aiohttp import web
from sqlalchemy import text

from service.files.sweep import sweep
from tests.conftest import wait_until
from tests.service.batches.conftest import CHAT, Client, create, line, over, rows, upload
from tests.service.conftest import Service
from tests.service.gateway.captured import CHAT_WHOLE
from tests.service.gateway.conftest import BASE, Ledger, Tenant
from tests.service.gateway.upstream import Upstream, named
from tests.service.stage import Stage


def test_a_batch_answers_each_line_and_books_it(
    upstream: Upstream, client: Client, tenant: Tenant, ledger: Ledger
) -> None:
    sdk, before = client(tenant.key), len(ledger.of(tenant))
    lines = [line(n, tenant.model if n % 2 else BASE) for n in range(40)]
    lines += [line(40, "no-such-model"), line(41, BASE, stream=True), line(42, BASE, nonsense=1)]
    made = create(sdk, lines, metadata={"a": "b"}, output_expires_after={"anchor": "created_at", "seconds": 3600})
    assert (made.status, made.endpoint, made.completion_window, made.metadata) == (
        "validating", CHAT, "24h", {"a": "b"},
    )  # fmt: skip
    assert made.expires_at == made.created_at + 24 * 3600
    batch = over(sdk, made.id)
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"total": 43, "completed": 40, "failed": 3}
    assert batch.usage is not None
    assert (batch.usage.input_tokens, batch.usage.output_tokens, batch.usage.total_tokens) == (240, 120, 360)
    assert sorted(ledger.of(tenant)[before:]) == sorted([(tenant.model, 6, 3), (BASE, 6, 3)] * 20)

    good = rows(sdk, batch.output_file_id)
    assert set(good) == {f"r{n}" for n in range(40)}
    assert all(each["response"]["status_code"] == 200 and each["error"] is None for each in good.values())
    assert good["r1"]["response"]["body"] == json.loads(named(CHAT_WHOLE, tenant.model))
    bad = rows(sdk, batch.error_file_id)
    codes = {
        name: (each["response"]["status_code"], each["response"]["body"]["error"]["code"]) for name, each in bad.items()
    }
    assert codes == {
        "r40": (404, "model_not_found"),
        "r41": (400, "invalid_request"),
        "r42": (400, "unknown_parameter"),
    }
    output = sdk.files.retrieve(batch.output_file_id or "")
    assert (output.purpose, output.expires_at) == ("batch_output", output.created_at + 3600)
    assert output.id in {file.id for file in sdk.files.list(purpose="batch_output")}
    assert upstream.headers[0]["x-weft-tenant"]


async def test_the_async_sdk_creates_lists_and_cancels(
    service: Service, upstream: Upstream, tenant: Tenant, client: Client
) -> None:
    file = await asyncio.to_thread(upload, client(tenant.key), [line(1, BASE, "/v1/responses")])
    async with openai.AsyncOpenAI(api_key=tenant.key, base_url=f"{service.url}/v1", max_retries=0) as sdk:
        made = [
            await sdk.batches.create(input_file_id=file, endpoint="/v1/responses", completion_window="24h")
            for _ in range(3)
        ]
        listed = [batch.id async for batch in sdk.batches.list(limit=2)]
        assert listed[:3] == [batch.id for batch in reversed(made)]
        page = await sdk.batches.list(limit=1, after=made[1].id)
        assert [batch.id for batch in page.data] == [made[0].id]
    batch = await asyncio.to_thread(over, client(tenant.key), made[0].id)
    answer = rows(client(tenant.key), batch.output_file_id)["r1"]["response"]["body"]
    assert (batch.status, answer["object"], answer["usage"]["output_tokens"]) == ("completed", "response", 3)


def test_a_cancelled_batch_keeps_what_was_answered(
    upstream: Upstream, client: Client, tenant: Tenant, admin: httpx2.Client
) -> None:
    sdk = client(tenant.key)

    async def some(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if body["messages"][0]["content"] not in ("request 0", "request 1"):
            await asyncio.sleep(60)
        return await upstream.usual(request, body)

    upstream.script = some
    made = create(sdk, [line(n, BASE) for n in range(20)])
    wait_until(lambda: sdk.batches.retrieve(made.id).request_counts.completed == 2, what="two answers")  # type: ignore[union-attr]
    assert sdk.batches.cancel(made.id).status == "cancelling"
    assert sdk.batches.cancel(made.id).status in ("cancelling", "cancelled")
    batch = over(sdk, made.id)
    assert (batch.status, batch.error_file_id) == ("cancelled", None)
    assert batch.cancelling_at is not None
    assert batch.cancelled_at is not None
    assert set(rows(sdk, batch.output_file_id)) == {"r0", "r1"}
    wait_until(lambda: upstream.aborted > 0, what="the replica was told")
    noted = admin.get("/organization/audit_logs", params={"resource_ids[]": made.id}).json()["data"]
    assert [each["type"] for each in noted] == ["batch.cancelled", "batch.created"]


def test_a_batch_that_is_over_cannot_be_cancelled(upstream: Upstream, client: Client, tenant: Tenant) -> None:
    sdk = client(tenant.key)
    made = over(sdk, create(sdk, [line(1, BASE)]).id)
    with pytest.raises(openai.ConflictError, match="completed"):
        sdk.batches.cancel(made.id)


def test_what_is_not_answered_within_the_window_is_told_so(
    service: Service, stage: Stage, upstream: Upstream, client: Client, tenant: Tenant
) -> None:
    sdk = client(tenant.key)

    async def one(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if body["messages"][0]["content"] != "request 0":
            await asyncio.sleep(60)
        return await upstream.usual(request, body)

    upstream.script = one
    made = create(sdk, [line(n, BASE) for n in range(5)])
    wait_until(lambda: sdk.batches.retrieve(made.id).request_counts.completed == 1, what="one answer")  # type: ignore[union-attr]
    service.call(_change(stage, made.id, "expires_at = now()"))
    batch = over(sdk, made.id)
    assert batch.status == "expired"
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"total": 5, "completed": 1, "failed": 4}
    assert set(rows(sdk, batch.output_file_id)) == {"r0"}
    assert {each["error"]["code"] for each in rows(sdk, batch.error_file_id).values()} == {"batch_expired"}


async def _change(stage: Stage, batch: str, values: str) -> None:
    async with stage.resources.database.control() as session:
        await session.execute(text(f"update batches set {values} where id = :id"), {"id": batch})


@pytest.mark.parametrize(
    ("lines", "code", "number"),
    [
        ([line(1, BASE), {**line(1, BASE)}], "duplicate_custom_id", 2),
        ([line(1, BASE, "/v1/responses")], "mismatched_endpoint", 1),
        ([{**line(1, BASE), "body": {}}], "missing_model", 1),
    ],
)
def test_a_file_that_cannot_be_worked_on_fails_its_batch(
    upstream: Upstream, client: Client, tenant: Tenant, lines: list[dict[str, Any]], code: str, number: int
) -> None:
    sdk = client(tenant.key)
    batch = over(sdk, create(sdk, lines).id)
    assert (batch.status, batch.output_file_id) == ("failed", None)
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert (batch.errors.data[0].code, batch.errors.data[0].line) == (code, number)
    assert not upstream.bodies


def test_what_cannot_become_a_batch_is_refused(
    client: Client, tenant: Tenant, neighbour: Tenant, http: httpx2.Client
) -> None:
    sdk = client(tenant.key)
    file = upload(client(neighbour.key), [line(1, BASE)])
    for unknown in (file, "file-000"):
        with pytest.raises(openai.NotFoundError, match="No such File object"):
            sdk.batches.create(input_file_id=unknown, endpoint=CHAT, completion_window="24h")
    theirs = create(client(neighbour.key), [line(1, BASE)])
    for unknown in (theirs.id, "batch_000"):
        for ask in (sdk.batches.retrieve, sdk.batches.cancel):
            with pytest.raises(openai.NotFoundError) as caught:
                ask(unknown)
            assert caught.value.code == "not_found"
    own = upload(sdk, [line(1, BASE)])
    with pytest.raises(openai.BadRequestError) as caught_endpoint:
        sdk.batches.create(input_file_id=own, endpoint="/v1/embeddings", completion_window="24h")
    assert caught_endpoint.value.code == "model_not_supported"
    for body in ({"completion_window": "1h"}, {"endpoint": "/v1/moderations"}, {"metadata": {"a": 1}}, {"x": 1}):
        answer = http.post(
            "/batches", json={"input_file_id": own, "endpoint": CHAT, "completion_window": "24h", **body}
        )
        assert answer.status_code in (400, 422), body
        assert answer.json()["error"]["code"]


def test_a_repeated_creation_makes_one_batch(
    http: httpx2.Client, client: Client, tenant: Tenant, upstream: Upstream
) -> None:
    body = {"input_file_id": upload(client(tenant.key), [line(1, BASE)]), "endpoint": CHAT, "completion_window": "24h"}
    answers = [http.post("/batches", json=body, headers={"idempotency-key": "one-batch"}) for _ in range(3)]
    assert len({answer.json()["id"] for answer in answers}) == 1


def test_a_batch_outlives_its_input_file(
    service: Service, stage: Stage, upstream: Upstream, client: Client, tenant: Tenant
) -> None:
    sdk = client(tenant.key)
    upstream.script = _unavailable
    made = create(sdk, [line(n, BASE) for n in range(3)])
    wait_until(lambda: sdk.batches.retrieve(made.id).status == "in_progress", what="it began")
    sdk.files.delete(made.input_file_id)
    service.call(sweep(stage.resources, timedelta(0)))
    upstream.script = None
    assert over(sdk, made.id).status == "completed"


async def _unavailable(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    problem = {"message": "Too many requests wait for this replica.", "code": "no_capacity"}
    return web.json_response({"error": problem}, status=503, headers={"Retry-After": "1"})


def test_an_event_tells_of_the_end(
    service: Service, stage: Stage, upstream: Upstream, client: Client, tenant: Tenant, http: httpx2.Client
) -> None:
    endpoint = {"name": "mine", "url": "https://example.com/hook", "event_types": ["batch.completed", "batch.failed"]}
    assert http.post("/webhook_endpoints", json=endpoint).status_code == 200
    sdk = client(tenant.key)
    done = over(sdk, create(sdk, [line(1, BASE)]).id)
    failed = over(sdk, create(sdk, [line(1, BASE, "/v1/responses")]).id)
    query = "select event_type, body from webhook_deliveries where project_id = :project"
    told = {
        (kind, json.loads(body)["data"]["id"]) for kind, body in service.call(stage.rows(query, project=tenant.project))
    }
    assert told >= {("batch.completed", done.id), ("batch.failed", failed.id)}


def test_a_line_on_which_replicas_fail_is_given_up_and_the_others_are_answered(
    upstream: Upstream, client: Client, tenant: Tenant
) -> None:
    sdk = client(tenant.key)

    async def fails(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if body["messages"][0]["content"] == "request 1":
            return web.json_response({"error": {"message": "EngineCore died", "code": 500}}, status=500)
        return await upstream.usual(request, body)

    upstream.script = fails
    batch = over(sdk, create(sdk, [line(n, BASE) for n in range(3)]).id)
    assert batch.status == "completed"
    assert set(rows(sdk, batch.output_file_id)) == {"r0", "r2"}
    given_up = rows(sdk, batch.error_file_id)["r1"]["response"]
    assert (given_up["status_code"], given_up["body"]["error"]["code"]) == (503, "replica_unavailable")


def test_a_batch_waits_while_the_budget_is_spent(
    service: Service,
    stage: Stage,
    upstream: Upstream,
    client: Client,
    neighbour: Tenant,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.batches.executor.SPENT", timedelta(seconds=0.2))
    monkeypatch.setattr("service.batches.asking.BUDGET_SECONDS", 0.0)
    sdk = client(neighbour.key)
    upstream.script = _unavailable
    made = create(sdk, [line(n, BASE) for n in range(3)])
    wait_until(lambda: sdk.batches.retrieve(made.id).status == "in_progress", what="it began")
    service.call(_budget(stage, neighbour, 0))
    with pytest.raises(openai.RateLimitError) as caught:
        create(sdk, [line(1, BASE)])
    assert caught.value.code == "insufficient_quota"
    # The requests go on failing until it has been given back: answered, they would end the batch first.
    epoch = _given_back(service, stage, made.id, after=0)
    asked, upstream.script = len(upstream.bodies), None
    _given_back(service, stage, made.id, after=epoch)
    assert sdk.batches.retrieve(made.id).status == "in_progress"
    assert len(upstream.bodies) == asked
    service.call(_budget(stage, neighbour, None))
    assert over(sdk, made.id).status == "completed"


def _given_back(service: Service, stage: Stage, batch: str, after: int) -> int:
    """Waits until a holder that came after epoch `after` has left the batch; returns the newest epoch."""
    query = "select epoch from batches where id = :id and held_until < now() + interval '1 second' and epoch > :after"
    found: list[int] = []

    def look() -> bool:
        found.extend(row[0] for row in service.call(stage.rows(query, id=batch, after=after)))
        return bool(found)

    wait_until(look, what="it was given back")
    return found[-1]


async def _budget(stage: Stage, tenant: Tenant, cents: int | None) -> None:
    async with stage.resources.database.control() as session:
        change = text("update projects set monthly_budget_cents = :cents where id = :id")
        await session.execute(change, {"cents": cents, "id": tenant.project})
