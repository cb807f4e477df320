"""The application with tenants, a fine-tuned model each, and a replica that answers with vLLM's bytes."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import httpx2
import pytest

from service.adapters.registry import Trained, publish
from service.contracts.ids import ProjectId, fine_tuned_model_name
from service.contracts.job import JobSpec
from service.contracts.manifest import adapter_id_of
from service.settings import ServiceSettings
from tests.conftest import free_port, wait_until
from tests.service.conftest import Service
from tests.service.gateway.upstream import Upstream
from tests.service.stage import Stage, adapter_manifest

BASE = "weft-tiny"


@dataclass
class Tenant:
    project: ProjectId
    key: str
    model: str
    adapter: str


@pytest.fixture(scope="module")
def service_settings(service_settings: ServiceSettings) -> ServiceSettings:
    return service_settings.model_copy(update={"cold_wait_seconds": 2.0, "stall_seconds": 2.0})


@pytest.fixture(scope="module")
def stage(service: Service) -> Stage:
    return Stage(service.resources, itertools.count())


async def make_tenant(stage: Stage) -> Tenant:
    """A project with a key and one fine-tuned model, put in place behind the API."""
    project = await stage.project()
    job = await stage.job(project)
    async with stage.resources.database.control() as session:
        row = await stage.row(job)
        manifest = adapter_manifest(JobSpec.model_validate(row.spec), 1, {"a": job.encode()})
        name = fine_tuned_model_name(BASE, "acme", "demo")
        await publish(session, Trained(project, job, 1, manifest), name)
    return Tenant(project, await stage.key(project), name, adapter_id_of(manifest))


@pytest.fixture(scope="module")
def tenant(service: Service, stage: Stage) -> Tenant:
    return service.call(make_tenant(stage))


@pytest.fixture(scope="module")
def neighbour(service: Service, stage: Stage) -> Tenant:
    return service.call(make_tenant(stage))


@pytest.fixture(scope="module")
def running_upstream(service: Service) -> Iterator[Upstream]:
    upstream = Upstream(free_port())
    upstream.start()
    try:
        beat(service, upstream)
        yield upstream
    finally:
        upstream.stop()


@pytest.fixture
def upstream(service: Service, running_upstream: Upstream) -> Upstream:
    """The only replica, ready and known to the gateway, with nothing remembered of earlier tests."""
    running_upstream.reset()
    beat(service, running_upstream)
    return running_upstream


def beat(
    service: Service,
    upstream: Upstream,
    state: str = "ready",
    adapters: tuple[str, ...] = (),
    quarantined: Mapping[str, str] | None = None,
) -> None:
    """One heartbeat; returns when the gateway has taken note of it."""
    base = service.settings.base_models[0]
    body = {
        "url": upstream.url,
        "api_key": upstream.api_key,
        "base_model": base.name,
        "base_fingerprint": base.fingerprint,
        "state": state,
        "max_loras": 4,
        "max_lora_rank": 64,
        "context_length": 1024,
        "adapters": adapters,
        "quarantined": quarantined or {},
    }
    token = service.settings.replica_token.get_secret_value()
    url = f"{service.url}/internal/replicas/replica-{upstream.port}"
    httpx2.put(url, json=body, headers={"authorization": f"Bearer {token}"}, timeout=10).raise_for_status()
    membership = service.app.state.gateway.membership

    def known() -> bool:
        listed = {replica.url: replica.adapters for replica in membership.ready(base.name)}
        return listed.get(upstream.url) == (frozenset(adapters) if state == "ready" else None)

    wait_until(known, what="the gateway knows the replica")


@pytest.fixture
def http(service: Service, tenant: Tenant) -> Iterator[httpx2.Client]:
    """Raw HTTP with the tenant's key; paths begin at /v1."""
    headers = {"authorization": f"Bearer {tenant.key}"}
    with httpx2.Client(base_url=f"{service.url}/v1", headers=headers, timeout=30) as client:
        yield client


def chat(model: str, **fields: object) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": "Hi"}], **fields}


@dataclass
class Ledger:
    """The usage table, seen after everything spooled so far was delivered."""

    service: Service
    stage: Stage

    def of(self, tenant: Tenant) -> list[tuple[str, int, int]]:
        """Model, prompt tokens and completion tokens of each completion, oldest first."""
        gateway = self.service.app.state.gateway
        assert self.service.call(gateway.spool.deliver())
        query = (
            "select model, prompt_tokens, completion_tokens from usage "
            "where project_id = :project and kind = 'completion' order by created_at, id"
        )
        return [tuple(row) for row in self.service.call(self.stage.rows(query, project=tenant.project))]


@pytest.fixture(scope="module")
def ledger(service: Service, stage: Stage) -> Ledger:
    return Ledger(service, stage)
