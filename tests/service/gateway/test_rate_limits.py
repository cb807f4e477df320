"""Rates, budgets, scopes and concurrent requests, as a caller of the gateway meets them."""

import contextlib
from collections.abc import Callable
from typing import Any

import httpx2
import openai
import pytest
from aiohttp import web
from sqlalchemy import text

from tests.conftest import wait_until
from tests.service.conftest import Service
from tests.service.gateway.conftest import Tenant, chat, make_tenant
from tests.service.gateway.upstream import Upstream
from tests.service.stage import Stage


@pytest.fixture
def limited(service: Service, stage: Stage) -> Callable[..., tuple[Tenant, openai.OpenAI]]:
    """A tenant of its own with these columns of its project set before its key is first used."""

    def make(**columns: Any) -> tuple[Tenant, openai.OpenAI]:
        made = service.call(make_tenant(stage))

        async def change() -> None:
            async with service.resources.database.control() as session:
                for column, value in columns.items():
                    statement = text(f"update projects set {column} = :value where id = :id")
                    await session.execute(statement, {"value": value, "id": made.project})

        service.call(change())
        return made, service.client(made.key)

    return make


def test_an_answer_tells_what_is_left(
    upstream: Upstream, http: httpx2.Client, tenant: Tenant, service: Service
) -> None:
    answer = http.post("/chat/completions", json=chat(tenant.model, max_tokens=10))
    assert answer.status_code == 200
    limit = service.settings.max_requests_per_minute
    assert answer.headers["x-ratelimit-limit-requests"] == str(limit)
    assert int(answer.headers["x-ratelimit-remaining-requests"]) < limit
    assert answer.headers["x-ratelimit-reset-requests"].endswith("ms")
    assert int(answer.headers["x-ratelimit-remaining-tokens"]) <= service.settings.max_tokens_per_minute - 10


def test_a_stream_tells_it_too(upstream: Upstream, http: httpx2.Client, tenant: Tenant) -> None:
    with http.stream("POST", "/chat/completions", json=chat(tenant.model, stream=True)) as answer:
        assert "x-ratelimit-remaining-tokens" in answer.headers
        answer.read()


def test_one_request_over_the_rate_is_a_429_that_says_when(upstream: Upstream, limited: Any) -> None:
    made, api = limited(max_requests_per_minute=2)
    for _ in range(2):
        api.chat.completions.create(**chat(made.model))
    with pytest.raises(openai.RateLimitError) as caught:
        api.chat.completions.create(**chat(made.model))
    assert caught.value.code == "rate_limit_exceeded"
    headers = caught.value.response.headers
    assert 1 <= int(headers["retry-after"]) <= 30
    assert headers["x-ratelimit-remaining-requests"] == "0"


def test_tokens_are_counted_as_they_were_used(upstream: Upstream, limited: Any, service: Service) -> None:
    made, api = limited(max_tokens_per_minute=100_000)
    api.chat.completions.create(**chat(made.model, max_tokens=50_000))
    answer = api.chat.completions.with_raw_response.create(**chat(made.model))
    assert int(answer.headers["x-ratelimit-remaining-tokens"]) > 99_000
    with pytest.raises(openai.RateLimitError, match="Request too large") as caught:
        api.chat.completions.create(**chat(made.model, max_tokens=100_001))
    assert caught.value.response.headers["x-should-retry"] == "false"


def test_what_no_replica_answered_gives_its_tokens_back(upstream: Upstream, limited: Any) -> None:
    made, api = limited(max_tokens_per_minute=1000)

    async def refuse(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"error": {"message": "no", "type": "BadRequestError", "code": 400}}, status=400)

    upstream.script = refuse
    for _ in range(3):
        with pytest.raises(openai.BadRequestError) as caught:
            api.chat.completions.create(**chat(made.model, max_tokens=900))
        assert caught.value.response.headers["x-ratelimit-limit-tokens"] == "1000", "told with a refusal, too"
    upstream.script = None
    api.chat.completions.create(**chat(made.model, max_tokens=900))


def test_a_project_without_streams_gets_none(upstream: Upstream, limited: Any) -> None:
    made, api = limited(max_streams=0)
    with pytest.raises(openai.RateLimitError, match="0 requests in progress, of 0"):
        api.chat.completions.create(**chat(made.model))


def test_a_spent_budget_is_a_429_that_is_not_repeated(upstream: Upstream, limited: Any) -> None:
    made, api = limited(monthly_budget_cents=0)

    def refused() -> bool:
        with contextlib.suppress(openai.RateLimitError):
            api.chat.completions.create(**chat(made.model))
            return False
        return True

    wait_until(refused, what="the budget is known to be spent")
    with pytest.raises(openai.RateLimitError) as caught:
        api.chat.completions.create(**chat(made.model))
    assert caught.value.code == "insufficient_quota"
    assert caught.value.response.headers["x-should-retry"] == "false"


def test_a_key_for_reading_only_cannot_ask(upstream: Upstream, service: Service, stage: Stage, tenant: Tenant) -> None:
    key = service.call(stage.key(tenant.project))

    async def restrict() -> None:
        async with service.resources.database.control() as session:
            statement = "update api_keys set scopes = '[\"api.all.read\"]' where project_id = :id and created_at = "
            newest = "(select max(created_at) from api_keys where project_id = :id)"
            await session.execute(text(statement + newest), {"id": tenant.project})

    service.call(restrict())
    with pytest.raises(openai.PermissionDeniedError, match=r"api\.model\.request"):
        service.client(key).chat.completions.create(**chat(tenant.model))
