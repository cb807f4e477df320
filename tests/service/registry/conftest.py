"""The running application, and projects with models that can be registered."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from service.adapters import aliases
from service.adapters.aliases import ServingRoute
from service.contracts.ids import ProjectId
from service.contracts.worker import Event
from service.settings import ServiceSettings
from tests.service.conftest import Service
from tests.service.stage import Stage


@pytest.fixture(scope="module")
def service_settings(service_settings: ServiceSettings) -> ServiceSettings:
    """On a busy machine no lease may run out between two steps of a test."""
    return service_settings.model_copy(update={"lease_ttl_seconds": 600.0})


@pytest.fixture(scope="module")
def stage(service: Service) -> Stage:
    """Puts things in place behind the running application; call its methods through `service.call`."""
    return Stage(service.resources, itertools.count())


@dataclass
class Owner:
    """A project, seen through its key and from behind."""

    service: Service
    stage: Stage
    project: ProjectId
    http: httpx2.Client

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": self.http.headers["authorization"]}

    def ask(self, method: str, path: str, status: int = 200, **options: Any) -> Any:
        answer = self.http.request(method, path, **options)
        assert answer.status_code == status, answer.text
        return answer.json()

    def refused(self, method: str, path: str, status: int, **options: Any) -> str:
        """The error's code."""
        return self.ask(method, path, status, **options)["error"]["code"]

    def trained(self, *, loss: float | None = None, **body: Any) -> tuple[str, str]:
        """A finished job and its model. No other job may be waiting meanwhile."""
        job = self.service.call(self.stage.job(self.project, **body))
        lease = self.service.call(self.stage.claimed())
        assert lease.spec.job_id == job
        if loss is not None:
            data = {"step": 100, "train_loss": 0.5, "full_valid_loss": loss}
            told = Event(id="ftevent-0001", level="info", type="metrics", message="Step 100", data=data)
            self.service.call(self.stage.report(lease, step=100, events=(told,)))
        return job, self.service.call(self.stage.succeed(lease)).fine_tuned_model

    def registered(self, name: str, versions: int = 1) -> list[str]:
        """An adapter with so many versions; gives the models behind them."""
        models = [self.trained()[1] for _ in range(versions)]
        self.ask("POST", "/adapters", json={"name": name})
        for model in models:
            self.ask("POST", f"/adapters/{name}/versions", json={"source": {"type": "model", "model": model}})
        return models

    def route(self, reference: str) -> ServingRoute | None:
        """As a gateway looks it up."""

        async def found() -> ServingRoute | None:
            async with self.stage.resources.database.tenant(self.project) as session:
                return await aliases.find_route(session, self.project, reference)

        return self.service.call(found())

    def served(self, reference: str) -> dict[int, float] | None:
        """Versions and their parts of the traffic."""
        route = self.route(reference)
        return {share.version: share.weight for share in route.shares} if route else None


@pytest.fixture(scope="module")
def owners(service: Service, stage: Stage) -> Iterator[Callable[[], Owner]]:
    clients: list[httpx2.Client] = []
    (organization,) = service.call(
        stage.rows("select id from organizations where name = :n", n=service.settings.organization_name)
    )

    def make() -> Owner:
        project = service.call(stage.project())
        move = "update projects set organization_id = :o where id = :p returning id"
        service.call(stage.rows(move, o=organization.id, p=project))
        headers = {"authorization": f"Bearer {service.call(stage.key(project))}"}
        clients.append(httpx2.Client(base_url=f"{service.url}/v1", headers=headers, timeout=30))
        return Owner(service, stage, project, clients[-1])

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def owner(owners: Callable[[], Owner]) -> Owner:
    return owners()
