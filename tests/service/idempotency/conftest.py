import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from service.contracts.ids import ProjectId
from tests.service.conftest import Service
from tests.service.stage import Stage


@dataclass
class Owner:
    """One project with a key and a file, and raw HTTP with that key; paths begin at /v1."""

    project: ProjectId
    key: str
    body: dict[str, Any]
    http: httpx2.Client

    def create(self, key: str | None = None, retry: int = 0, **fields: Any) -> httpx2.Response:
        headers = {"x-stainless-retry-count": str(retry)} | ({"idempotency-key": key} if key else {})
        return self.http.post("/fine_tuning/jobs", json={**self.body, **fields}, headers=headers)

    def jobs(self) -> int:
        return len(self.http.get("/fine_tuning/jobs", params={"limit": 100}).json()["data"])


@pytest.fixture(scope="module")
def stage(service: Service) -> Stage:
    return Stage(service.resources, itertools.count())


@pytest.fixture
def owner(service: Service, stage: Stage) -> Iterator[Owner]:
    project = service.call(stage.project())
    key = service.call(stage.key(project))
    body = {"model": "weft-tiny", "training_file": service.call(stage.file(project)), "seed": 1}
    headers = {"authorization": f"Bearer {key}"}
    with httpx2.Client(base_url=f"{service.url}/v1", headers=headers, timeout=30) as http:
        yield Owner(project, key, body, http)
