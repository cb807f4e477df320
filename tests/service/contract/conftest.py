"""The running application with two tenants who own one thing of every kind, and a replica that answers as vLLM does."""

import itertools
import json
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from aiohttp import web

from service.settings import ServiceSettings
from tests.conftest import free_port
from tests.service.conftest import Service
from tests.service.contract.compatibility import LINES, World
from tests.service.gateway.captured import CHAT_COUNTED, CHAT_WHOLE, TEXT_COUNTED, TEXT_HEAD
from tests.service.gateway.conftest import beat
from tests.service.gateway.upstream import Upstream, named
from tests.service.stage import Stage

BASE = "weft-tiny"
TEXT_WHOLE = TEXT_HEAD.removeprefix(b"data: ") + (
    b'"choices":[{"index":0,"text":"i","logprobs":null,"finish_reason":"length","stop_reason":null}],'
    b'"usage":{"prompt_tokens":2,"total_tokens":3,"completion_tokens":1}}'
)


class Replica(Upstream):
    """Answers both routes, whole and streamed, with texts that came to their own end."""

    async def usual(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        chat = request.path.endswith("/chat/completions")
        if request.path.endswith("/responses"):
            return await super().usual(request, body)
        if body.get("stream"):
            events = CHAT_COUNTED if chat else TEXT_COUNTED
            return await self.stream(request, (named(_stopped(event), body["model"]) for event in events))
        whole = _stopped(CHAT_WHOLE if chat else TEXT_WHOLE)
        return web.Response(body=named(whole, body["model"]), content_type="application/json")


def _stopped(data: bytes) -> bytes:
    return data.replace(b'"finish_reason":"length"', b'"finish_reason":"stop"')


@dataclass
class Tenant:
    """A project, its key and the id of one of its things of each kind."""

    project: str
    key: str
    ids: dict[str, str]


@pytest.fixture(scope="module")
def service_settings(service_settings: ServiceSettings) -> ServiceSettings:
    patient = {"lease_ttl_seconds": 600.0, "replica_ttl_seconds": 3600.0}
    return service_settings.model_copy(update={"webhooks_to_private_networks": True, **patient})


@pytest.fixture(scope="module")
def stage(service: Service) -> Stage:
    return Stage(service.resources, itertools.count())


@pytest.fixture(scope="module")
def replica(service: Service) -> Iterator[Replica]:
    """The only one. It is announced once; the settings let it live for as long as the tests take."""
    started = Replica(free_port())
    started.start()
    try:
        beat(service, started)
        yield started
    finally:
        started.stop()


@dataclass
class Maker:
    """Makes things for one tenant, through the API where it can."""

    service: Service
    stage: Stage
    http: httpx2.Client
    project: str
    hook: str

    def post(self, path: str, **options: Any) -> Any:
        answer = self.http.post(path, **options)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def file(self) -> str:
        return self.service.call(self.stage.file(self.project))  # type: ignore[arg-type]

    def batch_file(self) -> str:
        request = {"model": BASE, "messages": [{"role": "user", "content": "Hi"}]}
        line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": request}
        body = (json.dumps(line) + "\n").encode()
        return self.post("/files", data={"purpose": "batch"}, files={"file": ("a.jsonl", body)})["id"]

    def batch(self) -> str:
        body = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
        return self.post("/batches", json={"input_file_id": self.batch_file(), **body})["id"]

    def queued_job(self) -> str:
        return self.post("/fine_tuning/jobs", json={"model": BASE, "training_file": self.file()})["id"]

    def paused_job(self) -> str:
        return self.post(f"/fine_tuning/jobs/{self.queued_job()}/pause")["id"]

    def trained(self) -> tuple[str, str, str]:
        """A finished job, its model and its checkpoint's model. No other job may be waiting meanwhile."""
        job = self.queued_job()
        # Ahead of what other tests have queued.
        self.service.call(self.stage.rows("update jobs set priority = 9 where id = :job returning id", job=job))
        lease = self.service.call(self.stage.claimed())
        assert lease.spec.job_id == job
        self.service.call(self.stage.checkpoint_model(lease, step=1, weights=job.encode()))
        model = self.service.call(self.stage.succeed(lease)).fine_tuned_model
        return job, model, f"{model}:ckpt-step-1"

    def upload(self) -> str:
        body = {"bytes": len(LINES), "filename": "a.jsonl", "mime_type": "text/jsonl", "purpose": "fine-tune"}
        return self.post("/uploads", json=body)["id"]

    def part(self, upload: str) -> str:
        return self.post(f"/uploads/{upload}/parts", files={"data": ("data", LINES)})["id"]

    def endpoint(self) -> str:
        body = {"name": "ci", "url": self.hook, "event_types": ["fine_tuning.job.succeeded"]}
        return self.post("/webhook_endpoints", json=body)["id"]

    def permission(self, model: str, project: str) -> str:
        key = self.service.settings.admin_key.get_secret_value()
        path = f"/fine_tuning/checkpoints/{model}/permissions"
        return self.post(path, json={"project_ids": [project]}, headers={"authorization": f"Bearer {key}"})["data"][0][
            "id"
        ]

    def adapter(self, model: str) -> str:
        """With versions 1 to 3, of which the last has no alias; `default` went from 1 to 2."""
        name = f"bot-{secrets.token_hex(6)}"
        source = {"type": "model", "model": model}
        self.post("/adapters", json={"name": name, "from": source})
        for _ in range(2):
            self.post(f"/adapters/{name}/versions", json={"source": source})
        answer = self.http.put(f"/adapters/{name}/aliases/default", json={"version": 2})
        assert answer.status_code == 200, answer.text
        return name

    def adapter_permission(self, adapter: str, project: str) -> str:
        key = self.service.settings.admin_key.get_secret_value()
        headers = {"authorization": f"Bearer {key}"}
        body = {"project_ids": [project]}
        return self.post(f"/adapters/{adapter}/permissions", json=body, headers=headers)["data"][0]["id"]

    def adapter_files(self) -> dict[str, str]:
        """As PEFT writes them, as far as the service looks."""
        names = ("adapter_config.json", "adapter_model.safetensors")
        form = {"data": {"purpose": "user_data"}}
        return {name: self.post("/files", files={"file": (name, b"{}")}, **form)["id"] for name in names}

    def adapter_import(self) -> str:
        """Queued; no worker asks for it."""
        return self.post("/adapters/imports", json={"adapter": "bot-brought", "files": self.adapter_files()})["id"]

    def adapter_export(self, adapter: str) -> str:
        return self.post(f"/adapters/{adapter}/versions/1/exports", json={"format": "peft"})["id"]

    def evaluation(self, adapter: str) -> str:
        body = {"version": 1, "file_id": self.file(), "grader": {"type": "exact_match"}}
        return self.post(f"/adapters/{adapter}/evaluations", json=body)["id"]

    def everything(self) -> dict[str, str]:
        endpoint = self.endpoint()
        job, model, checkpoint = self.trained()
        upload = self.upload()
        adapter = self.adapter(model)
        (delivery,) = self.http.get(f"/webhook_endpoints/{endpoint}/deliveries").json()["data"]
        return {
            "project": self.project,
            "file": self.file(),
            "other file": self.file(),
            "batch file": self.batch_file(),
            "batch": self.batch(),
            "job": job,
            "model": model,
            "checkpoint model": checkpoint,
            "event": self.http.get(f"/fine_tuning/jobs/{job}/events").json()["data"][0]["id"],
            "checkpoint": self.http.get(f"/fine_tuning/jobs/{job}/checkpoints").json()["data"][0]["id"],
            "upload": upload,
            "part": self.part(upload),
            "endpoint": endpoint,
            "delivery": delivery["id"],
            "adapter": adapter,
            "registered adapter": self.http.get(f"/adapters/{adapter}").json()["id"],
            "version": self.http.get(f"/adapters/{adapter}/versions/1").json()["id"],
            "change": self.http.get(f"/adapters/{adapter}/history").json()["data"][0]["id"],
            "adapter file": self.adapter_files()["adapter_config.json"],
            "import": self.adapter_import(),
            "export": self.adapter_export(adapter),
            "evaluation": self.evaluation(adapter),
            "hook": self.hook,
        }


Makers = Callable[[str], tuple[Tenant, Maker]]


@pytest.fixture(scope="module")
def makers(
    service: Service, stage: Stage, replica: Replica, make_project: Callable[[str], tuple[str, str]]
) -> Iterator[Makers]:
    clients: list[httpx2.Client] = []

    def make(name: str) -> tuple[Tenant, Maker]:
        project, key = make_project(name)
        headers = {"authorization": f"Bearer {key}"}
        clients.append(httpx2.Client(base_url=f"{service.url}/v1", headers=headers, timeout=60))
        maker = Maker(service, stage, clients[-1], project, f"{replica.url}/v1/hook")
        return Tenant(project, key, maker.everything()), maker

    yield make
    for client in clients:
        client.close()


@pytest.fixture(scope="module")
def tenants(makers: Makers) -> tuple[Tenant, Tenant]:
    """One who asks and one whose things are asked for."""
    return makers("asks")[0], makers("owns")[0]


@pytest.fixture(scope="module")
def world(makers: Makers, make_project: Callable[[str], tuple[str, str]]) -> tuple[Tenant, World]:
    tenant, maker = makers("works")
    other, _ = makers("neighbour")
    maker.permission(tenant.ids["model"], make_project("shares")[0])
    admin_key = maker.service.settings.admin_key.get_secret_value()
    tenant.ids |= {"other project": other.project, "admin key": admin_key}

    def fresh(kind: str) -> str:
        match kind.partition(" of "):
            case "part", _, upload:
                return maker.part(upload)
            case "model", _, _:
                return maker.trained()[1]
            case "permission", _, _:
                return maker.permission(tenant.ids["model"], other.project)
            case _:
                return getattr(maker, kind.replace(" ", "_"))()

    return tenant, World(tenant.ids, fresh)
