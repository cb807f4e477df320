"""Projects with registered adapters, files to judge by, jobs that ask for a promotion, and a replica with a plan."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest
from aiohttp import web

from service.contracts.worker import Event, Lease
from service.settings import ServiceSettings
from tests.conftest import wait_until
from tests.service.conftest import Service
from tests.service.gateway.captured import CHAT_WHOLE
from tests.service.gateway.conftest import running_upstream, stage, upstream
from tests.service.gateway.registered import NAME, Registered
from tests.service.gateway.upstream import Upstream, named
from tests.service.stage import Stage

__all__ = ["running_upstream", "stage", "upstream"]

SAID = b'"content":"He said \\"usage\\":{}!"'
RIGHT, WRONG = "4", "5"
"""The stage's files ask for 2+2."""


@pytest.fixture(scope="module")
def service_settings(service_settings: ServiceSettings) -> ServiceSettings:
    """However slow the machine: the replica says only once that it is there."""
    patient = {"lease_ttl_seconds": 600.0, "replica_ttl_seconds": 3600.0}
    return service_settings.model_copy(update={"cold_wait_seconds": 1.0, **patient})


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.promotions.executor.POLL_SECONDS", 0.05)
        patch.setattr("service.promotions.asking.PAUSE", 0.02)
        patch.setattr("service.promotions.rollback.SWEEP_SECONDS", 0.2)
        yield


@dataclass
class Plan:
    """What the replica says, by the adapter that it is asked for; anything else is asked of a model that is right."""

    replica: Upstream
    texts: dict[str, str] = field(default_factory=dict[str, str])
    failing: set[str] = field(default_factory=set[str])
    asked: list[str] = field(default_factory=list[str])
    hold: threading.Event | None = None

    async def __call__(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        self.asked.append(body["model"])
        if self.hold is not None:
            await asyncio.to_thread(self.hold.wait, 60)
        if body["model"] in self.failing:
            return web.json_response({"error": {"message": "EngineCore died", "code": 500}}, status=500)
        return web.Response(body=says(self.texts.get(body["model"], RIGHT), body), content_type="application/json")


def says(text: str, body: dict[str, Any]) -> bytes:
    return named(CHAT_WHOLE.replace(SAID, b'"content":' + json.dumps(text).encode()), body["model"])


@pytest.fixture
def plan(upstream: Upstream) -> Plan:
    made = Plan(upstream)
    upstream.script = made
    return made


@dataclass
class Owner(Registered):
    """A tenant of `support-bot`."""

    def held_out(self, examples: int = 6, **columns: Any) -> str:
        return self.service.call(self.stage.file(self.project, examples=examples, **columns))

    def refused(self, method: str, path: str, /, **body: Any) -> httpx2.Response:
        url = f"{self.service.url}/v1/adapters{path}"
        return httpx2.request(method, url, json=body, headers=self.headers, timeout=20)

    def started(self, **on_success: Any) -> tuple[str, Lease]:
        """A job with a promotion, claimed."""
        gate = {"adapter": NAME, "alias": "prod", **on_success}
        job = self.service.call(self.stage.job(self.project, on_success=gate, validation_file=self.held_out()))
        # Before those that nobody works on.
        later = "update jobs set not_before = now() + interval '1 day' where id <> :job returning id"
        self.service.call(self.stage.rows(later, job=job))
        lease = self.service.call(self.stage.claimed())
        assert lease.spec.job_id == job
        return job, lease

    def succeeded(self, loss: float | None = None, **on_success: Any) -> str:
        """A finished job whose promotion is to be decided."""
        job, lease = self.started(**on_success)
        if loss is not None:
            data = {"step": 100, "train_loss": 0.5, "full_valid_loss": loss}
            told = Event(id="ftevent-0001", level="info", type="metrics", message="Step 100", data=data)
            self.service.call(self.stage.report(lease, step=100, events=(told,)))
        self.service.call(self.stage.succeed(lease))
        return job

    def newest(self) -> dict[str, Any]:
        return self.api("GET", f"/{NAME}/evaluations")["data"][0]

    def over(self, seconds: float = 60) -> dict[str, Any]:
        """The newest evaluation once it has ended."""
        wait_until(lambda: self.newest()["status"] in ("succeeded", "failed"), seconds, what="the evaluation ended")
        return self.newest()

    def stands_for(self, alias: str = "prod") -> int | None:
        return self.api("GET", f"/{NAME}")["aliases"].get(alias)

    def told(self, job: str) -> str:
        """The last that the job's history says."""
        return self.service.call(self.stage.messages(job))[-1]

    def booked(self) -> list[tuple[str, int]]:
        """Model and number of requests in the ledger."""
        query = (
            "select model, count(*) from usage where project_id = :project and kind = 'completion' "
            "group by model order by model"
        )
        return [tuple(row) for row in self.service.call(self.stage.rows(query, project=self.project))]


@pytest.fixture
def owner(service: Service, stage: Stage, plan: Plan) -> Callable[..., Owner]:
    def make(versions: int = 1) -> Owner:
        made = Owner.made(service, stage, versions)
        assert isinstance(made, Owner)
        return made

    return make
