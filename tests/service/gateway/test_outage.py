"""The database goes away and comes back: chat goes on for whoever was known, and nothing that was used is lost."""

import asyncio
import contextlib
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from aiohttp import web

from deploy.local.postgres import Postgres
from service.settings import ServiceSettings
from tests.conftest import wait_until
from tests.service.conftest import Service
from tests.service.gateway.conftest import BASE, Ledger, Tenant, beat, chat
from tests.service.gateway.proxy import Proxy
from tests.service.gateway.upstream import Upstream


@pytest.fixture(scope="module")
def proxy(postgres_server: Postgres) -> Iterator[Proxy]:
    # A unix socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="weft-") as folder:
        proxy = Proxy(Path(folder), postgres_server.socket_dir)
        yield proxy
        proxy.stop()


@pytest.fixture(scope="module")
def service_settings(service_settings: ServiceSettings, proxy: Proxy, postgres_server: Postgres) -> ServiceSettings:
    def through(url: str) -> str:
        return url.partition("?host=")[0] + f"?host={proxy.folder}"

    urls = {
        name: getattr(service_settings, name).get_secret_value() for name in ("database_url", "control_database_url")
    }
    short = {"cache_seconds": 0.2, "replica_ttl_seconds": 3.0}
    return ServiceSettings.model_validate(
        service_settings.model_dump() | {name: through(url) for name, url in urls.items()} | short
    )


@pytest.fixture
def announced(service: Service, upstream: Upstream) -> Iterator[None]:
    """The replica announces itself for as long as the test runs, as its launcher does."""
    over = threading.Event()

    def announce() -> None:
        while not over.wait(0.3):
            with contextlib.suppress(httpx2.HTTPError):
                beat(service, upstream)

    thread = threading.Thread(target=announce, name="launcher")
    thread.start()
    yield
    over.set()
    thread.join(20)


@pytest.mark.usefixtures("announced")
def test_chat_goes_on_through_an_outage_and_everything_is_booked_after_it(
    service: Service, upstream: Upstream, tenant: Tenant, neighbour: Tenant, ledger: Ledger, proxy: Proxy
) -> None:
    def ask(tenant: Tenant, model: str) -> httpx2.Response:
        headers = {"authorization": f"Bearer {tenant.key}"}
        return httpx2.post(f"{service.url}/v1/chat/completions", json=chat(model), headers=headers, timeout=10)

    before = len(ledger.of(tenant))
    assert [ask(tenant, model).status_code for model in (tenant.model, BASE)] == [200, 200]
    gateway = service.app.state.gateway
    proxy.cut()
    wait_until(lambda: not service.call(gateway.spool.deliver()), what="the database is away")
    # Longer than every cache's life and the replica's time to live.
    served, until = 0, time.monotonic() + 2 * service.settings.replica_ttl_seconds
    while time.monotonic() < until:
        for model in (tenant.model, BASE):
            answer = ask(tenant, model)
            assert answer.status_code == 200, answer.text
            served += 1
    for unknown in (ask(tenant, "ft:weft-tiny:acme:x:AAAAAAAA"), ask(neighbour, BASE)):
        assert unknown.status_code == 503
        assert float(unknown.headers["retry-after"]) > 0
        assert set(unknown.json()["error"]) == {"message", "type", "param", "code"}
    proxy.mend()
    wait_until(lambda: ask(neighbour, BASE).status_code == 200, what="the database is back")
    assert ask(tenant, tenant.model).status_code == 200
    served += 1
    wait_until(lambda: service.call(gateway.spool.deliver()), what="the spool is delivered")
    assert len(ledger.of(tenant)) == before + 2 + served
    assert not list(service.settings.spool_dir.glob("*.jsonl"))


@pytest.mark.usefixtures("announced")
def test_a_promise_that_cannot_be_kept_is_not_given_and_an_answer_that_is_there_is_not_lost(
    service: Service, upstream: Upstream, tenant: Tenant, proxy: Proxy
) -> None:
    """An `Idempotency-Key` needs the database: before the model is asked, not after."""
    open_gate = threading.Event()

    async def answer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.to_thread(open_gate.wait, 20)
        return await upstream.usual(request, body)

    def ask(key: str) -> httpx2.Response:
        headers = {"authorization": f"Bearer {tenant.key}", "idempotency-key": key}
        return httpx2.post(f"{service.url}/v1/chat/completions", json=chat(BASE), headers=headers, timeout=20)

    upstream.script = answer
    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(ask, "before")
        wait_until(lambda: len(upstream.bodies) == 1, what="the replica is asked")
        proxy.cut()
        try:
            assert (ask("meanwhile").status_code, len(upstream.bodies)) == (503, 1)
            open_gate.set()
            assert under_way.result(20).status_code == 200
        finally:
            proxy.mend()
