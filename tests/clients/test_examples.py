"""Every example in the SDK's docstrings, run as it stands against a real service."""

import asyncio
import doctest
import importlib
import pkgutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import weft
from tests.clients.conftest import SECRET, Carrier, Received, Tenant, examples
from tests.service.conftest import Service
from weft import AsyncWeft, Weft

DAY = 86_400
EXAMPLES = 13
"""Of the held-out file, so that it is not the training file."""


def documented() -> Iterator[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    for found in pkgutil.walk_packages(weft.__path__, "weft."):
        if not found.name.startswith("weft.cli"):
            yield from finder.find(importlib.import_module(found.name))
    yield from finder.find(weft)


TESTS = {test.name: test for test in documented() if test.examples}

PROMOTED = {"adapter": "support-bot", "alias": "prod", "version": 2, "previous_version": 1}


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.promotions.executor.POLL_SECONDS", 0.1)
        patch.setattr("weft.resources.evaluations.POLL_SECONDS", 0.1)
        yield


@pytest.fixture
def owner(
    service: Service, make_project: Callable[[str], tuple[str, str]], request: pytest.FixtureRequest
) -> Iterator[Tenant]:
    """A project of the example's own."""
    project, key = make_project(request.node.name)
    with Weft(api_key=key, base_url=f"{service.url}/v1", max_retries=0, timeout=30) as client:
        yield Tenant(project, key, client)


def prepared(client: Weft, source: str) -> dict[str, Any]:
    """What the example speaks of."""
    file = client.files.create(file=("train.jsonl", examples()), purpose="fine-tune").id
    names: dict[str, Any] = {"file_id": file}
    if "webhook_id" in source:
        types = ["fine_tuning.job.succeeded"]
        made = client.webhook_endpoints.create(name="jobs", url="https://hooks.example.com/jobs", event_types=types)
        names["webhook_id"] = made.id
    if "job_id" in source or "support-bot" in source or "adapter_id" in source:
        held_out = client.files.create(file=("held-out.jsonl", examples(EXAMPLES)), purpose="fine-tune").id
        request: dict[str, Any] = {"model": "weft-tiny", "training_file": file, "validation_file": held_out}
        job = client.fine_tuning.jobs.create_and_wait(**request, wait_timeout=60)
        names |= {"job_id": job.id, "held_out_id": held_out}
        adapter = client.adapters.create(name="support-bot", source={"type": "job", "job_id": job.id})
        names["adapter_id"] = adapter.id
    return names


@pytest.mark.parametrize("name", sorted(TESTS))
def test_an_example(
    name: str,
    service: Service,
    owner: Tenant,
    administrator: Weft,
    worker: None,
    carrier: Carrier,
    folder: Path,
    saved: Path,
) -> None:
    test = TESTS[name]
    test.globs = {
        "asyncio": asyncio,
        "AsyncWeft": AsyncWeft,
        "Weft": Weft,
        "datasets": importlib.import_module("weft.datasets"),
        "base_url": f"{service.url}/v1",
        "api_key": owner.key,
        "client": owner.client,
        "admin": administrator,
        "project_id": owner.project_id,
        "request": Received.of("adapter.promoted", {"id": "adapter-1", **PROMOTED}),
        "signing_secret": SECRET,
        "midnight": int(time.time()) // DAY * DAY,
        **prepared(owner.client, "".join(example.source for example in test.examples)),
    }
    said: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF).run(test, out=said.append)
    assert result.attempted > 0
    assert result.failed == 0, "".join(said)
