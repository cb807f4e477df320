"""Two replicas: who is asked, who takes over from one that is gone, hung, full or without the adapter, and how fast."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from aiohttp import web

from service.contracts.replica import TENANT_HEADER
from service.settings import ServiceSettings
from tests.conftest import free_port, wait_until
from tests.service.conftest import Service
from tests.service.gateway.conftest import BASE, Tenant, beat, chat, make_tenant
from tests.service.gateway.upstream import Script, Upstream
from tests.service.stage import Stage

Ask = Callable[..., httpx2.Response]


@pytest.fixture(scope="module")
def service_settings(service_settings: ServiceSettings) -> ServiceSettings:
    return service_settings.model_copy(update={"cold_wait_seconds": 5.0})


@pytest.fixture
def second(service: Service) -> Iterator[Upstream]:
    made = Upstream(free_port())
    made.start()
    beat(service, made)
    yield made
    beat(service, made, "down")
    made.stop()


@pytest.fixture
def home(upstream: Upstream, second: Upstream, http: httpx2.Client, tenant: Tenant) -> tuple[Upstream, Upstream]:
    """The replica on which the tenant's adapter is placed, and the other one."""
    assert http.post("/chat/completions", json=chat(tenant.model)).status_code == 200
    found = (upstream, second) if upstream.bodies else (second, upstream)
    for each in found:
        each.reset()
    return found


def refusing(code: str, status: int = 503) -> Script:
    async def refuse(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        error = {"message": "not now", "type": "server_error", "param": None, "code": code}
        return web.json_response({"error": error}, status=status, headers={"Retry-After": "7"})

    return refuse


async def hang(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    await asyncio.sleep(30)
    return web.Response()


def test_replicas_can_tell_tenants_apart_and_learn_no_more(
    upstream: Upstream, http: httpx2.Client, service: Service, tenant: Tenant, neighbour: Tenant
) -> None:
    for model in (tenant.model, BASE):
        assert http.post("/chat/completions", json=chat(model)).status_code == 200
    other = httpx2.post(
        f"{service.url}/v1/chat/completions",
        json=chat(neighbour.model),
        headers={"authorization": f"Bearer {neighbour.key}", TENANT_HEADER: "mine"},
    )
    assert other.status_code == 200
    words = [headers[TENANT_HEADER] for headers in upstream.headers]
    assert words[0] == words[1] != words[2]
    salts = [body["cache_salt"] for body in upstream.bodies]
    for word in words:
        assert len(word) >= 32
        assert word not in salts
        assert tenant.project not in word


def test_one_replica_gets_all_of_an_adapter(
    home: tuple[Upstream, Upstream], http: httpx2.Client, tenant: Tenant
) -> None:
    for _ in range(10):
        assert http.post("/chat/completions", json=chat(tenant.model)).status_code == 200
    assert (len(home[0].bodies), len(home[1].bodies)) == (10, 0)


@pytest.mark.parametrize("stream", [False, True])
def test_a_dead_replicas_requests_go_to_the_other_within_the_same_request(
    service: Service, home: tuple[Upstream, Upstream], http: httpx2.Client, tenant: Tenant, stream: bool
) -> None:
    home[0].stop()
    try:
        for _ in range(5):
            started = time.monotonic()
            assert http.post("/chat/completions", json=chat(tenant.model, stream=stream)).status_code == 200
            assert time.monotonic() - started < 1
        assert len(home[1].bodies) == 5
    finally:
        home[0].start()
        beat(service, home[0])


def test_a_request_that_was_never_taken_in_is_put_to_every_replica(
    service: Service, upstream: Upstream, http: httpx2.Client, tenant: Tenant
) -> None:
    gone = [Upstream(free_port()) for _ in range(4)]
    for each in gone:
        beat(service, each)
    try:
        for model in (tenant.model, BASE):
            assert http.post("/chat/completions", json=chat(model)).status_code == 200
    finally:
        for each in gone:
            beat(service, each, "down")


@pytest.mark.parametrize("stream", [False, True])
def test_a_hung_replicas_requests_are_put_to_the_other_in_seconds_and_new_ones_at_once(
    home: tuple[Upstream, Upstream], http: httpx2.Client, tenant: Tenant, stream: bool
) -> None:
    home[0].script, home[0].healthy = hang, False
    started = time.monotonic()
    assert http.post("/chat/completions", json=chat(tenant.model, stream=stream)).status_code == 200
    assert time.monotonic() - started < 4
    # For as long as it stays silent, which is longer than a suspicion lasts by itself.
    until = time.monotonic() + 3
    while time.monotonic() < until:
        started = time.monotonic()
        assert http.post("/chat/completions", json=chat(tenant.model, stream=stream)).status_code == 200
        assert time.monotonic() - started < 1
    assert len(home[0].bodies) == 1
    home[0].reset()
    wait_until(
        lambda: http.post("/chat/completions", json=chat(tenant.model)).is_success and bool(home[0].bodies),
        seconds=6,
        what="the adapter is back at home",
    )


def test_a_slow_replica_that_lives_is_waited_for(
    home: tuple[Upstream, Upstream], http: httpx2.Client, tenant: Tenant
) -> None:
    async def slow(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(4)
        return await home[0].usual(request, body)

    home[0].script = slow
    assert http.post("/chat/completions", json=chat(tenant.model)).status_code == 200
    assert (len(home[0].bodies), len(home[1].bodies)) == (1, 0)


def test_a_full_replica_passes_on_and_two_full_ones_say_so(
    home: tuple[Upstream, Upstream], http: httpx2.Client, tenant: Tenant
) -> None:
    home[0].script = refusing("no_capacity")
    assert http.post("/chat/completions", json=chat(tenant.model)).status_code == 200
    assert (len(home[0].bodies), len(home[1].bodies)) == (1, 1)
    home[1].script = refusing("no_capacity")
    answer = http.post("/chat/completions", json=chat(tenant.model))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_capacity")
    assert answer.headers["retry-after"] == "7"
    assert (len(home[0].bodies), len(home[1].bodies)) == (2, 2)


@pytest.mark.parametrize("code", ["adapter_storage_unavailable", "adapter_corrupt", "adapter_loading"])
def test_what_one_replica_cannot_fetch_another_that_holds_it_serves(
    service: Service, home: tuple[Upstream, Upstream], http: httpx2.Client, tenant: Tenant, code: str
) -> None:
    home[0].script = refusing(code)
    answer = http.post("/chat/completions", json=chat(tenant.model))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, code)
    assert home[1].bodies == []
    beat(service, home[1], adapters=(tenant.adapter,))
    assert http.post("/chat/completions", json=chat(tenant.model)).status_code == 200
    beat(service, home[1])


def test_a_refusal_that_no_replica_can_mend_is_not_passed_around(
    home: tuple[Upstream, Upstream], http: httpx2.Client, tenant: Tenant
) -> None:
    for code, status in (("adapter_invalid", 422), ("adapter_not_found", 404)):
        home[0].script = refusing(code, status)
        assert http.post("/chat/completions", json=chat(tenant.model)).status_code == status
    assert home[1].bodies == []


def test_a_draining_replica_gets_nothing_new(
    service: Service, home: tuple[Upstream, Upstream], http: httpx2.Client, tenant: Tenant
) -> None:
    beat(service, home[0], "draining")
    for _ in range(3):
        assert http.post("/chat/completions", json=chat(tenant.model)).status_code == 200
    assert (len(home[0].bodies), len(home[1].bodies)) == (0, 3)
    beat(service, home[0])


def test_what_began_to_answer_is_never_asked_again(
    home: tuple[Upstream, Upstream], http: httpx2.Client, tenant: Tenant
) -> None:
    async def breaks(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        head = b'data: {"id":"x","choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
        return await home[0].stream(request, [head], 0.05, ends=False)

    home[0].script = breaks
    text = http.post("/chat/completions", json=chat(tenant.model, stream=True)).text
    assert json.loads(text.strip().split("\n\n")[-1].removeprefix("data: "))["error"]["code"] == "server_error"
    assert home[1].bodies == []


def test_a_new_model_is_loaded_where_its_requests_will_go(
    service: Service, upstream: Upstream, second: Upstream, stage: Stage
) -> None:
    fresh = [service.call(make_tenant(stage)) for _ in range(6)]
    wanted = {each.adapter for each in fresh}
    wait_until(lambda: wanted <= {*upstream.ensured, *second.ensured}, seconds=2, what="all are warmed")
    for each in fresh:
        headers = {"authorization": f"Bearer {each.key}"}
        url = f"{service.url}/v1/chat/completions"
        assert httpx2.post(url, json=chat(each.model), headers=headers).status_code == 200
    for replica in (upstream, second):
        assert wanted & set(replica.ensured) == {body["model"] for body in replica.bodies}


def test_a_replica_that_will_not_warm_hurts_nobody(
    service: Service, upstream: Upstream, stage: Stage, http: httpx2.Client
) -> None:
    beat(service, upstream, "down")
    service.call(make_tenant(stage))
    beat(service, upstream)
    later = service.call(make_tenant(stage))
    wait_until(lambda: later.adapter in upstream.ensured, seconds=2, what="the next one is warmed")
    assert http.post("/chat/completions", json=chat(BASE)).status_code == 200


class TestLimits:
    @pytest.fixture(autouse=True)
    def few(self, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        limits = service.app.state.gateway.limits
        monkeypatch.setattr(limits, "_most", replace(limits._most, requests=3, of_project=2))

    def test_a_project_and_a_process_take_so_many_at_once(
        self, service: Service, upstream: Upstream, tenant: Tenant, neighbour: Tenant
    ) -> None:
        go = threading.Event()

        async def wait(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
            while not go.is_set():  # noqa: ASYNC110 - another thread sets it
                await asyncio.sleep(0.02)
            return await upstream.usual(request, body)

        upstream.script = wait
        statuses: list[int] = []

        def ask(of: Tenant) -> httpx2.Response:
            headers = {"authorization": f"Bearer {of.key}"}
            return httpx2.post(f"{service.url}/v1/chat/completions", json=chat(of.model), headers=headers, timeout=20)

        threads = []
        for number, of in enumerate((tenant, tenant, neighbour), 1):
            threads.append(threading.Thread(target=lambda of=of: statuses.append(ask(of).status_code)))
            threads[-1].start()
            wait_until(lambda number=number: len(upstream.bodies) == number, what="it is under way")
        third = ask(tenant)
        assert (third.status_code, third.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        fourth = ask(neighbour)
        assert (fourth.status_code, fourth.json()["error"]["code"]) == (503, "overloaded")
        for refused in (third, fourth):
            assert float(refused.headers["retry-after"]) > 0
            assert set(refused.json()["error"]) == {"message", "type", "param", "code"}
        go.set()
        for thread in threads:
            thread.join()
        assert statuses == [200] * 3
        upstream.script = None
        assert [ask(of).status_code for of in (tenant, neighbour) for _ in range(3)] == [200] * 6

    def test_a_refused_request_and_one_that_left_give_their_place_back(
        self, service: Service, upstream: Upstream, http: httpx2.Client, tenant: Tenant
    ) -> None:
        for _ in range(5):
            assert http.post("/chat/completions", json={"model": 1}).status_code == 400
            assert http.post("/chat/completions", json=chat("nope")).status_code == 404
        upstream.script = hang
        for _ in range(2):
            with pytest.raises(httpx2.TimeoutException):
                http.post("/chat/completions", json=chat(tenant.model), timeout=0.3)
        wait_until(lambda: upstream.aborted == 2, what="both are ended")
        upstream.script = None
        assert http.post("/chat/completions", json=chat(tenant.model)).status_code == 200
