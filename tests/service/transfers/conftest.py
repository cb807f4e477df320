"""The running application, projects with files of adapters, and a worker that takes transfers over HTTP."""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from service.contracts.ids import ProjectId
from service.contracts.manifest import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    MANIFEST,
    AdapterManifest,
    ManifestFile,
    canonical_json,
)
from service.settings import ServiceSettings
from tests.service.conftest import Service
from tests.service.stage import Stage
from tests.service.weights import lora_file

CONFIG = json.dumps({"peft_type": "LORA", "r": 4, "base_model_name_or_path": "/secret/path"}).encode()
WEIGHTS = bytes(range(256)) * 16
BUCKET = "bring"
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def service_settings(service_settings: ServiceSettings) -> ServiceSettings:
    return service_settings.model_copy(
        update={
            "lease_ttl_seconds": 600.0,
            "presign_seconds": 60,
            "max_project_transfers": 4,
            "import_places": (f"{BUCKET}/" + "{project}", "shared-weights/public"),
        }
    )


@pytest.fixture(scope="module")
def stage(service: Service) -> Stage:
    return Stage(service.resources, itertools.count())


@dataclass
class Owner:
    """A project, seen through its key."""

    project: ProjectId
    http: httpx2.Client

    def ask(self, method: str, path: str, status: int = 200, **options: Any) -> Any:
        answer = self.http.request(method, path, **options)
        assert answer.status_code == status, answer.text
        return answer.json()

    def refused(self, method: str, path: str, status: int, **options: Any) -> str:
        """The error's code."""
        return self.ask(method, path, status, **options)["error"]["code"]

    def file(self, body: bytes, purpose: str = "user_data") -> str:
        return self.ask("POST", "/files", files={"file": ("any", body)}, data={"purpose": purpose})["id"]

    def files(self, config: bytes = CONFIG, weights: bytes = WEIGHTS) -> dict[str, str]:
        return {ADAPTER_CONFIG: self.file(config), ADAPTER_WEIGHTS: self.file(weights)}

    def begin(self, name: str, **changes: Any) -> dict[str, Any]:
        return self.ask("POST", "/adapters/imports", json={"adapter": name, "files": self.files(), **changes})

    def state(self, what: dict[str, Any]) -> dict[str, Any]:
        return self.ask(
            "GET", f"/adapters/{'imports' if what['object'] == 'adapter.import' else 'exports'}/{what['id']}"
        )


@dataclass
class Worker:
    """What a trainer's agent does, without training."""

    service: Service
    http: httpx2.Client

    def call(self, path: str, status: int = 200, **body: Any) -> Any:
        answer = self.http.post(f"/internal/transfers{path}", json=body)
        assert answer.status_code == status, answer.text
        return answer.json() if answer.content else None

    def claim(self, status: int = 200, **changes: Any) -> Any:
        base = self.service.settings.base_models[0]
        asked = {"worker": "w1", "base_model": base.name, "base_fingerprint": base.fingerprint, **changes}
        return self.call("/lease", status, **asked)

    def claimed(self, transfer: dict[str, Any]) -> dict[str, Any]:
        lease = self.claim()
        assert lease["id"] == transfer["id"]
        return lease

    def finish(self, lease: dict[str, Any], outcome: str, status: int = 200, **fields: Any) -> Any:
        return self.call(f"/{lease['id']}/finish", status, epoch=lease["epoch"], outcome=outcome, **fields)

    def manifest(self, lease: dict[str, Any], weights: bytes = b"new weights", **changes: Any) -> AdapterManifest:
        base = self.service.settings.base_models[0]
        made = AdapterManifest(
            base_model=base.name,
            base_fingerprint=base.fingerprint,
            chat_template_sha256=base.chat_template_sha256,
            rank=4,
            alpha=8.0,
            target_modules=("q_proj",),
            job_id=lease["id"],
            step=0,
            files=listed({ADAPTER_CONFIG: CONFIG, ADAPTER_WEIGHTS: lora_file(weights)}),
        )
        return made.model_copy(update=changes)

    def store(self, lease: dict[str, Any], manifest: AdapterManifest, weights: bytes = b"new weights") -> None:
        body = {"epoch": lease["epoch"], "adapter": manifest.model_dump(mode="json")}
        urls = self.call(f"/{lease['id']}/uploads", **body)["urls"]
        files = {ADAPTER_CONFIG: CONFIG, ADAPTER_WEIGHTS: lora_file(weights), MANIFEST: canonical_json(manifest)}
        put(urls, files)

    def imported(self, owner: Owner, name: str, weights: bytes = b"new weights") -> dict[str, Any]:
        """A whole import; gives it as its owner sees it then."""
        begun = owner.begin(name)
        lease = self.claimed(begun)
        manifest = self.manifest(lease, weights)
        self.store(lease, manifest, weights)
        told = self.finish(lease, "succeeded", adapter=manifest.model_dump(mode="json"), changes=["renamed"])
        assert told == {"status": "succeeded"}, owner.state(begun)
        return owner.state(begun)


def listed(files: dict[str, bytes]) -> tuple[ManifestFile, ...]:
    return tuple(
        ManifestFile(path=name, sha256=hashlib.sha256(body).hexdigest(), size=len(body)) for name, body in files.items()
    )


def put(urls: dict[str, str], files: dict[str, bytes]) -> None:
    with httpx2.Client(timeout=30) as store:
        for name, body in files.items():
            store.put(urls[name], content=body).raise_for_status()


def fetched(url: str) -> bytes:
    answer = httpx2.get(url, timeout=30)
    answer.raise_for_status()
    return answer.content


@pytest.fixture(scope="module")
def worker(service: Service) -> Iterator[Worker]:
    headers = {"authorization": f"Bearer {service.settings.worker_token.get_secret_value()}"}
    with httpx2.Client(base_url=service.url, headers=headers, timeout=30) as http:
        yield Worker(service, http)


@pytest.fixture
def owner(service: Service, make_project: Callable[[str], tuple[str, str]]) -> Iterator[Owner]:
    yield from _owner(service, make_project(f"own {next(NUMBERS)}"))


@pytest.fixture
def stranger(service: Service, make_project: Callable[[str], tuple[str, str]]) -> Iterator[Owner]:
    yield from _owner(service, make_project(f"other {next(NUMBERS)}"))


def _owner(service: Service, made: tuple[str, str]) -> Iterator[Owner]:
    project, key = made
    headers = {"authorization": f"Bearer {key}"}
    with httpx2.Client(base_url=f"{service.url}/v1", headers=headers, timeout=30) as http:
        yield Owner(ProjectId(project), http)


@pytest.fixture
def change(service: Service) -> Callable[..., None]:
    """Changes a transfer's row from behind, as time would."""

    def change(transfer: dict[str, Any], assignments: str) -> None:
        async def done() -> None:
            async with service.resources.database.control() as session:
                await session.execute(
                    text(f"update transfers set {assignments} where id = :id"), {"id": transfer["id"]}
                )

        service.call(done())

    return change
