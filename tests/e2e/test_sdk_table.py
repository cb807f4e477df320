"""Every method of the stock `openai` package, sync and async, against the whole embedded stack: the table of
`tests.service.contract.compatibility`, over a model that was trained here and vLLM's own answers.
"""

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx2
import pytest
from openai import OpenAI

from tests.e2e.stack import Stack
from tests.e2e.training import wait_for_job
from tests.service.contract.calling import call, call_async, refuse, refuse_async
from tests.service.contract.compatibility import ABSENT, CALLS, LINES, World

pytestmark = pytest.mark.stack

BASE = "weft-tiny"


@pytest.fixture(scope="module")
def hook() -> Iterator[str]:
    """The address of an endpoint that takes every event."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *_: object) -> None:
            """Silent."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    thread.join()
    server.server_close()


class Own:
    """Things of one project, made through the stock client. After one job nothing is trained: its jobs stay queued."""

    def __init__(self, stack: Stack, hook: str) -> None:
        self.client = OpenAI(base_url=stack.base_url, api_key=stack.project("e2e-table"), max_retries=0)
        self.admin = httpx2.Client(
            base_url=f"{stack.base_url}/organization", headers={"authorization": f"Bearer {stack.admin_key}"}
        )
        self._administrator = self.client.with_options(api_key=stack.admin_key)
        for name in ("e2e-table-neighbour", "e2e-table-shares"):
            stack.project(name)
        self._projects = {each["name"]: each["id"] for each in self.admin.get("/projects?limit=100").json()["data"]}
        job, self._models = self._trained()
        self._limit(0)
        self.ids = {
            "admin key": stack.admin_key,
            "job": job,
            "model": self._models.pop(),
            "other project": self._projects["e2e-table-neighbour"],
            "hook": hook,
            "file": self.file(),
            "batch file": self._batch_file(),
            "batch": self.batch(),
        }
        self.ids["endpoint"] = self.endpoint()
        self._permission("e2e-table-shares")

    def _trained(self) -> tuple[str, list[str]]:
        """A job and its models, the finished one last."""
        settings: Any = {"n_epochs": 3, "batch_size": 4}
        job = self.client.fine_tuning.jobs.create(model=BASE, training_file=self.file(), hyperparameters=settings)
        done = wait_for_job(self.client, job.id)
        steps = self.client.fine_tuning.jobs.checkpoints.list(job.id)
        return job.id, [*(each.fine_tuned_model_checkpoint for each in steps), done.fine_tuned_model or ""]

    def _limit(self, jobs: int) -> None:
        place = f"/projects/{self._projects['e2e-table']}/rate_limits/rl-all-models"
        assert self.admin.post(place, json={"max_concurrent_jobs": jobs}).status_code == 200

    def file(self) -> str:
        return self.client.files.create(file=("a.jsonl", io.BytesIO(LINES)), purpose="fine-tune").id

    def _batch_file(self) -> str:
        body = {"model": BASE, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
        line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body}
        return self.client.files.create(file=("a.jsonl", json.dumps(line).encode()), purpose="batch").id

    def batch(self) -> str:
        return self.client.batches.create(
            input_file_id=self._batch_file(), endpoint="/v1/chat/completions", completion_window="24h"
        ).id

    def queued_job(self) -> str:
        return self.client.fine_tuning.jobs.create(model=BASE, training_file=self.file()).id

    def paused_job(self) -> str:
        return self.client.fine_tuning.jobs.pause(self.queued_job()).id

    def upload(self) -> str:
        return self.client.uploads.create(
            bytes=len(LINES), filename="a.jsonl", mime_type="text/jsonl", purpose="fine-tune"
        ).id

    def endpoint(self) -> str:
        return self.client.webhooks.create(name="ci", url=self.ids["hook"], event_types=["fine_tuning.job.failed"]).id

    def _permission(self, project: str) -> str:
        permissions = self._administrator.fine_tuning.checkpoints.permissions
        return permissions.create(self.ids["model"], project_ids=[self._projects[project]]).data[0].id

    def fresh(self, kind: str) -> str:
        match kind.partition(" of "):
            case "part", _, upload:
                return self.client.uploads.parts.create(upload, data=LINES).id
            case "model", _, _:
                return self._models.pop()
            case "permission", _, _:
                return self._permission("e2e-table-neighbour")
            case _:
                return getattr(self, kind.replace(" ", "_"))()


@pytest.fixture(scope="module")
def options(stack: Stack) -> dict[str, Any]:
    return {"base_url": stack.base_url, "api_key": stack.project("e2e-table"), "max_retries": 0, "timeout": 60}


@pytest.fixture(scope="module")
def world(stack: Stack, hook: str) -> Iterator[World]:
    own = Own(stack, hook)
    yield World(own.ids, own.fresh)
    own.client.close()
    own.admin.close()


@pytest.mark.parametrize("name", CALLS)
def test_works(options: dict[str, Any], world: World, name: str) -> None:
    call(options, world, name)


@pytest.mark.parametrize("name", CALLS)
async def test_works_async(options: dict[str, Any], world: World, name: str) -> None:
    await call_async(options, world, name)


@pytest.mark.parametrize("name", ABSENT)
async def test_is_refused_as_the_package_expects(options: dict[str, Any], world: World, name: str) -> None:
    refuse(options, world, name)
    await refuse_async(options, world, name)
