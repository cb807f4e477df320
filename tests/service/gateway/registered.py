"""A tenant with a registered adapter of several versions, and its aliases, as its owner changes them."""

from dataclasses import dataclass
from typing import Any

import httpx2

from service.adapters.registry import Trained, publish
from service.contracts.ids import ProjectId, fine_tuned_model_name
from service.contracts.job import JobSpec
from service.contracts.manifest import adapter_id_of
from tests.service.conftest import Service
from tests.service.stage import Stage, adapter_manifest

NAME = "support-bot"


async def registrable(stage: Stage, project: ProjectId, base: str = "weft-tiny") -> tuple[str, str]:
    """One more fine-tuned model of the project: its name and its adapter."""
    job = await stage.job(project)
    async with stage.resources.database.control() as session:
        row = await stage.row(job)
        manifest = adapter_manifest(JobSpec.model_validate(row.spec), 1, {"a": job.encode()})
        name = fine_tuned_model_name(base, "acme", job[-6:].lower())
        await publish(session, Trained(project, job, 1, manifest), name)
    return name, adapter_id_of(manifest)


@dataclass
class Registered:
    """`adapters[n - 1]` is what a replica knows version n by."""

    service: Service
    stage: Stage
    project: ProjectId
    key: str
    adapters: list[str]

    @classmethod
    def made(cls, service: Service, stage: Stage, versions: int = 2) -> "Registered":
        project = service.call(stage.project())
        made = cls(service, stage, project, service.call(stage.key(project)), [])
        made.api("POST", "", name=NAME)
        for _ in range(versions):
            made.add()
        return made

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}

    def api(self, method: str, path: str, /, **body: Any) -> dict[str, Any]:
        url = f"{self.service.url}/v1/adapters{path}"
        answer = httpx2.request(method, url, json=body, headers=self.headers, timeout=20)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def add(self) -> int:
        """One more version; its number."""
        model, adapter = self.service.call(registrable(self.stage, self.project))
        self.adapters.append(adapter)
        return self.api("POST", f"/{NAME}/versions", source={"type": "model", "model": model})["version"]

    def point(self, version: int, alias: str = "default", **split: Any) -> dict[str, Any]:
        return self.api("PUT", f"/{NAME}/aliases/{alias}", version=version, **split)

    def ask(self, model: str = NAME, path: str = "chat/completions", **fields: Any) -> httpx2.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], **fields}
        return httpx2.post(f"{self.service.url}/v1/{path}", json=body, headers=self.headers, timeout=20)

    def answering(self, model: str = NAME, **fields: Any) -> int:
        """The version that answered."""
        answer = self.ask(model, **fields)
        assert answer.status_code == 200, answer.text
        name, _, number = answer.headers["x-adapter-version"].partition("@v")
        assert name == NAME
        return int(number)

    def used(self) -> list[tuple[str, str | None, str | None, bool]]:
        """Model, base, key and whether it was a copy, of everything in the ledger."""
        assert self.service.call(self.service.app.state.gateway.spool.deliver())
        query = "select model, base_model, key_id, shadow from usage where project_id = :project order by created_at"
        return [tuple(row) for row in self.service.call(self.stage.rows(query, project=self.project))]

    def traffic(self, alias: str = "default") -> dict[str, Any]:
        """What became of an alias's requests, with those of this moment."""
        self.service.call(self.service.app.state.gateway.outcomes.flush())
        return self.api("GET", f"/{NAME}/aliases/{alias}/traffic")

    def counts(self, version: int, alias: str = "default", *, shadow: bool = False) -> tuple[int, int]:
        """Requests and errors."""
        key = (version, shadow)
        (found,) = (each for each in self.traffic(alias)["versions"] if (each["version"], each["shadow"]) == key)
        return found["requests"], found["errors"]

    @property
    def id(self) -> str:
        return self.api("GET", f"/{NAME}")["id"]
