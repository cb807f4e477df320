"""What completions hold in memory: bounded by bytes, for each project and in all, and freed as soon as it may be."""

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from aiohttp import web

from service.gateway import relay
from service.gateway.limits import Limits
from service.gateway.request import CompletionRequest
from tests.conftest import wait_until
from tests.service.conftest import Service
from tests.service.gateway.captured import CHAT_WHOLE
from tests.service.gateway.conftest import Ledger, Tenant, chat
from tests.service.gateway.upstream import Upstream, named

BODY = 200 << 10
OF_PROJECT = 5 * BODY
"""Two bodies, each of which counts twice, and not three."""


@pytest.fixture
def limits(service: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[Limits]:
    limits: Limits = service.app.state.gateway.limits
    small = replace(limits._most, bytes=7 * BODY, bytes_of_project=OF_PROJECT)
    monkeypatch.setattr(limits, "_most", small)
    yield limits
    wait_until(lambda: limits.held_bytes == 0, what="all is given back")
    assert not limits._bytes


class Held:
    """Requests that wait at a replica until `go`."""

    def __init__(self, service: Service, upstream: Upstream) -> None:
        self.answers: list[httpx2.Response] = []
        self._url = f"{service.url}/v1/chat/completions"
        self._upstream = upstream
        self._go = threading.Event()
        self._threads: list[threading.Thread] = []
        upstream.script = self._wait

    async def _wait(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        while not self._go.is_set():  # noqa: ASYNC110 - another thread sets it
            await asyncio.sleep(0.02)
        return await self._upstream.usual(request, body)

    def ask(self, of: Tenant, size: int = BODY, **fields: Any) -> httpx2.Response:
        body = chat(of.model, messages=[{"role": "assistant", "content": "x" * size}], **fields)
        return httpx2.post(self._url, json=body, headers={"authorization": f"Bearer {of.key}"}, timeout=20)

    def begin(self, of: Tenant, size: int = BODY) -> None:
        asked = len(self._upstream.bodies)
        self._threads.append(threading.Thread(target=lambda: self.answers.append(self.ask(of, size))))
        self._threads[-1].start()
        wait_until(lambda: len(self._upstream.bodies) > asked, what="it is under way")

    def go(self) -> list[int]:
        self._go.set()
        for thread in self._threads:
            thread.join(20)
        return [answer.status_code for answer in self.answers]


@pytest.fixture
def held(service: Service, upstream: Upstream) -> Iterator[Held]:
    made = Held(service, upstream)
    yield made
    made.go()


def test_large_requests_run_into_the_bytes_long_before_the_count(
    limits: Limits, held: Held, tenant: Tenant, neighbour: Tenant
) -> None:
    for _ in range(2):
        held.begin(tenant)
    assert 4 * BODY < limits.held_bytes < OF_PROJECT
    third = held.ask(tenant)
    assert (third.status_code, third.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert "hold" in third.json()["error"]["message"]
    held.begin(tenant, size=10)
    held.begin(neighbour)
    fourth = held.ask(neighbour)
    assert (fourth.status_code, fourth.json()["error"]["code"]) == (503, "overloaded")
    for refused in (third, fourth):
        assert float(refused.headers["retry-after"]) > 0
    assert held.go() == [200] * 4
    assert held.ask(tenant).status_code == 200


def test_while_a_request_waits_nothing_parsed_is_kept_of_it(limits: Limits, held: Held, tenant: Tenant) -> None:
    for _ in range(2):
        held.begin(tenant)
    waiting = [found for found in gc.get_objects() if type(found) is CompletionRequest]
    assert len(waiting) >= 2
    assert all(request.fields == {} for request in waiting)


def whole(size: int) -> Callable[[web.Request, dict[str, Any]], Any]:
    async def answer(request: web.Request, body: dict[str, Any]) -> web.Response:
        long = named(CHAT_WHOLE, body["model"]).replace(b"He said ", b"y" * size)
        return web.Response(body=long, content_type="application/json")

    return answer


@pytest.mark.parametrize(("size", "status"), [(OF_PROJECT - 4096, 200), (OF_PROJECT, 429)])
def test_an_answer_held_whole_counts_and_one_that_is_dropped_is_paid_for(
    service: Service, limits: Limits, upstream: Upstream, tenant: Tenant, http: httpx2.Client, ledger: Ledger,
    size: int, status: int,
) -> None:  # fmt: skip
    upstream.script = whole(size)
    before = ledger.of(tenant)
    answer = http.post("/chat/completions", json=chat(tenant.model))
    assert answer.status_code == status
    if status == 200:
        assert len(ledger.of(tenant)) == len(before) + 1
        return
    upstream.spent[upstream.headers[-1]["x-request-id"]] = (6, 70_000)
    wait_until(lambda: ledger.of(tenant) == [*before, (tenant.model, 6, 70_000)], what="the work is booked")


def test_an_answer_that_is_too_large_for_any_is_no_reason_to_ask_again(
    upstream: Upstream, tenant: Tenant, http: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "ANSWER_LIMIT", 1 << 20)
    upstream.script = whole(1 << 20)
    answer = http.post("/chat/completions", json=chat(tenant.model))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "answer_too_large")
    assert len(upstream.bodies) == 1
