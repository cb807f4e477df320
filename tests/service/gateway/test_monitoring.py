"""`/metrics` as an operator's scraper meets it: who may read it, and that its numbers are what happened."""

from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from service.settings import ServiceSettings
from tests.conftest import wait_until
from tests.service.conftest import Service
from tests.service.gateway.conftest import BASE, Tenant, beat, chat
from tests.service.gateway.upstream import Upstream

READING = "GET /metrics"
TOKEN = "a-token-that-opens-nothing-but-the-metrics"
LABELS = ("route", "project", "base_model", "code", "status", "kind")
Page = Callable[[], dict[tuple[str, ...], float]]


@pytest.fixture(scope="module")
def service_settings(service_settings: ServiceSettings) -> ServiceSettings:
    return service_settings.model_copy(update={"metrics_token": SecretStr(TOKEN), "cold_wait_seconds": 2.0})


def read(service: Service, token: str = TOKEN) -> httpx2.Response:
    return httpx2.get(f"{service.url}/metrics", headers={"authorization": f"Bearer {token}"})


@pytest.fixture
def page(service: Service) -> Page:
    """Values by name and labels."""

    def values() -> dict[tuple[str, ...], float]:
        families = text_string_to_metric_families(read(service).text)
        samples = [sample for family in families for sample in family.samples]
        return {(sample.name, *_ordered(sample.labels)): sample.value for sample in samples}

    return values


def test_it_is_read_with_the_admin_key_or_its_own_token_which_opens_nothing_else(
    service: Service, tenant: Tenant
) -> None:
    admin = service.settings.admin_key.get_secret_value()
    assert [read(service, token).status_code for token in (TOKEN, admin)] == [200, 200]
    assert read(service).headers["content-type"].startswith("text/plain")
    for token in (tenant.key, f"{TOKEN}x", "x" * 40, service.settings.worker_token.get_secret_value()):
        assert read(service, token).json()["error"]["code"] == "invalid_api_key"
    assert httpx2.get(f"{service.url}/metrics").status_code == 401
    headers = {"authorization": f"Bearer {TOKEN}"}
    assert httpx2.get(f"{service.url}/v1/organization/projects", headers=headers).status_code == 401
    assert httpx2.get(f"{service.url}/v1/models", headers=headers).status_code == 401


def test_tokens_requests_and_failures_are_counted(
    service: Service, upstream: Upstream, tenant: Tenant, http: httpx2.Client, page: Page
) -> None:
    def risen(ask: Callable[[], object]) -> dict[tuple[str, ...], float]:
        before = page()
        ask()
        changes = {name: value - before.get(name, 0) for name, value in page().items()}
        return {name: by for name, by in changes.items() if by and name[0].startswith("weft_") and READING not in name}

    def whole_and_streamed() -> None:
        for stream in (False, True):
            assert http.post("/chat/completions", json=chat(tenant.model, stream=stream)).status_code == 200

    requests, route = "weft_requests_total", "POST /v1/chat/completions"
    assert risen(whole_and_streamed) == {
        (requests, route, "2xx"): 2,
        ("weft_tokens_total", tenant.project, "prompt"): 12,
        ("weft_tokens_total", tenant.project, "completion"): 6,
    }
    assert risen(lambda: http.post("/chat/completions", json=chat("nope"))) == {(requests, route, "4xx"): 1}
    unknown = risen(lambda: http.get("/files/canary-of-a-tenant"))
    assert unknown == {(requests, "GET /v1/files/{file_id}", "4xx"): 1}
    assert risen(lambda: http.get("/canary-of-a-tenant")) == {(requests, "other", "4xx"): 1}

    async def crash(request: web.Request, body: dict[str, Any]) -> web.Response:
        return web.Response(status=500)

    upstream.script = crash
    assert risen(lambda: http.post("/chat/completions", json=chat(BASE))) == {
        (requests, route, "5xx"): 1,
        ("weft_placement_failures_total", "replica_unavailable"): 1,
    }
    assert "canary" not in read(service).text


def test_it_tells_of_replicas_and_jobs(service: Service, upstream: Upstream, tenant: Tenant, page: Page) -> None:
    """Making a tenant leaves a queued job."""
    now = page()
    assert now["weft_replicas_ready", BASE] == 1
    assert now["weft_database_up",] == 1
    assert now["weft_jobs", "queued"] >= 1
    assert now["weft_completions",] == now["weft_completion_bytes",] == 0
    assert now["process_resident_memory_bytes",] > 1 << 20
    beat(service, upstream, "down")
    wait_until(lambda: page()["weft_replicas_ready", BASE] == 0, what="no replica is left")


def _ordered(labels: dict[str, str]) -> list[str]:
    return [labels[name] for name in LABELS if name in labels]
