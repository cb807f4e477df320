"""One import or merge as an agent does it, with a real converter, against a service that is not always there."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from pydantic import BaseModel, SecretStr
from transformers import AutoModelForCausalLM, AutoTokenizer

from service.contracts.manifest import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    MANIFEST,
    AdapterManifest,
    ManifestFile,
    canonical_json,
)
from service.contracts.transfer import (
    ImportWork,
    MergeWork,
    SourceFile,
    TransferControl,
    TransferFinish,
    TransferFinished,
    TransferLease,
    TransferUploads,
)
from service.contracts.worker import AdapterRef, UploadTargets
from tests.trainer.agent.agent_harness import until
from tests.trainer.agent.stand_in_store import TOKEN, StandInStore
from tests.trainer.convert.foreign import base_of, logits, lora, made
from trainer.agent.transfer_run import TransferRun
from trainer.agent.transfers import Transfers
from trainer.commands import child_commands
from trainer.settings import TrainerSettings
from trainer.transfer_client import TransferClient

FINGERPRINT = "f" * 64


@dataclass
class Desk(StandInStore):
    """Gives out one transfer, keeps what it hears, and forgets the lease where a test says so."""

    waiting: list[TransferLease] = field(default_factory=list)
    finishes: list[TransferFinish] = field(default_factory=list)
    lost: bool = False
    renewals: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    async def start(self) -> None:
        app = web.Application(client_max_size=1 << 28)
        app.add_routes(
            [
                web.post("/internal/transfers/lease", self._lease),
                web.post("/internal/transfers/{job}/{verb}", self._leased),
                web.get("/objects/{key:.+}", self._get),
                web.put("/objects/{key:.+}", self._put),
            ]
        )
        self.runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}"

    async def _lease(self, request: web.Request) -> web.Response:
        self._enter(request, "lease")
        return _json(self.waiting.pop()) if self.waiting else web.Response(status=204)

    async def _leased(self, request: web.Request) -> web.Response:
        verb, raw = request.match_info["verb"], await request.read()
        self._enter(request, verb)
        if self.lost:
            return web.json_response({"error": {"message": "lost", "code": "lease_lost"}}, status=409)
        if verb == "renew":
            self.renewals += 1
            return _json(TransferControl(ttl_seconds=30))
        if verb == "uploads":
            asked = TransferUploads.model_validate_json(raw)
            names = [file.path for file in asked.adapter.files] + [MANIFEST] if asked.adapter else []
            names += [file.path for file in asked.files]
            return _json(UploadTargets(urls={name: f"{self.url}/objects/out/{name}" for name in names}))
        self.finishes.append(TransferFinish.model_validate_json(raw))
        return _json(TransferFinished(status="any"))


def _json(model: BaseModel) -> web.Response:
    return web.Response(text=model.model_dump_json(), content_type="application/json")


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    desk = Desk()
    await desk.start()
    yield desk
    await desk.runner.cleanup()


@dataclass
class Agent:
    desk: Desk
    settings: TrainerSettings
    client: TransferClient
    store: aiohttp.ClientSession
    folder: Path

    def parts(self) -> tuple[Any, ...]:
        return self.settings, child_commands(self.settings).converter, self.folder, self.client, self.store

    async def carry(self, lease: TransferLease) -> None:
        async with asyncio.timeout(120):
            await TransferRun(*self.parts(), lease).run()


@pytest.fixture
async def agent(desk: Desk, tiny_base_dir: Path, tmp_path: Path) -> AsyncIterator[Agent]:
    settings = TrainerSettings(
        service_url=desk.url,
        worker_token=SecretStr(TOKEN),
        base_model="weft-tiny",
        base_source=str(tiny_base_dir),
        base_fingerprint=FINGERPRINT,
        work_dir=tmp_path / "work",
        transfer_poll_seconds=0.05,
    )
    (tmp_path / "work").mkdir()
    async with aiohttp.ClientSession() as session, aiohttp.ClientSession() as store:
        client = TransferClient(session, desk.url, settings.worker_token)
        yield Agent(desk, settings, client, store, tmp_path / "work")


def an_import(desk: Desk, folder: Path, ttl: float = 30.0, **changes: Any) -> TransferLease:
    files = {}
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        body = desk.objects[f"in/{name}"] = (folder / name).read_bytes()
        files[name] = SourceFile(url=f"{desk.url}/objects/in/{name}", size=len(body), sha256=changes.get("sha256"))
    work = ImportWork(files=files, max_rank=64, chat_template_sha256="c" * 64)
    return _leased(work, "adimp-1", ttl)


def a_merge(desk: Desk, folder: Path) -> TransferLease:
    bodies = {name: (folder / name).read_bytes() for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)}
    desk.objects |= {f"in/{name}": body for name, body in bodies.items()}
    listed = tuple(
        ManifestFile(path=name, sha256=hashlib.sha256(body).hexdigest(), size=len(body))
        for name, body in bodies.items()
    )
    manifest = AdapterManifest(
        base_model="weft-tiny",
        base_fingerprint=FINGERPRINT,
        chat_template_sha256=None,
        rank=4,
        alpha=8.0,
        target_modules=("q_proj",),
        job_id="ftjob-1",
        step=1,
        files=listed,
    )
    urls = {name: f"{desk.url}/objects/in/{name}" for name in bodies}
    return _leased(MergeWork(adapter=AdapterRef(manifest=manifest, urls=urls)), "adexp-1", 30.0)


def _leased(work: ImportWork | MergeWork, name: str, ttl: float) -> TransferLease:
    return TransferLease(
        id=name,
        epoch=3,
        ttl_seconds=ttl,
        renew_seconds=0.1,
        base_model="weft-tiny",
        base_fingerprint=FINGERPRINT,
        work=work,
    )


async def test_an_import_is_stored_with_its_manifest_last(
    agent: Agent, desk: Desk, tiny_base_dir: Path, tmp_path: Path
) -> None:
    made(tmp_path / "theirs", tiny_base_dir, lora(use_rslora=True))
    await agent.carry(an_import(desk, tmp_path / "theirs"))
    (finish,) = desk.finishes
    assert (finish.outcome, finish.epoch, len(finish.changes)) == ("succeeded", 3, 1)
    manifest = finish.adapter
    assert manifest is not None
    assert (manifest.rank, manifest.alpha, manifest.job_id, manifest.step) == (4, 16.0, "adimp-1", 0)
    assert (manifest.base_fingerprint, manifest.chat_template_sha256) == (FINGERPRINT, "c" * 64)
    assert manifest.canary is not None
    assert desk.puts == [f"out/{name}" for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, MANIFEST)]
    assert desk.objects[f"out/{MANIFEST}"] == canonical_json(manifest)
    for file in manifest.files:
        assert hashlib.sha256(desk.objects[f"out/{file.path}"]).hexdigest() == file.sha256
    assert not list(agent.folder.iterdir())


async def test_merged_weights_are_a_model_that_says_the_same(
    agent: Agent, desk: Desk, tiny_base_dir: Path, tmp_path: Path
) -> None:
    wanted = made(tmp_path / "theirs", tiny_base_dir, lora())
    await agent.carry(a_merge(desk, tmp_path / "theirs"))
    (finish,) = desk.finishes
    assert finish.outcome == "succeeded"
    out = tmp_path / "out"
    out.mkdir()
    for file in finish.files:
        (out / file.path).write_bytes(desk.objects[f"out/{file.path}"])
    found = logits(AutoModelForCausalLM.from_pretrained(out).eval())
    bare = logits(base_of(tiny_base_dir))
    assert float((found - wanted).norm() / (wanted - bare).norm()) < 1e-4
    assert (
        AutoTokenizer.from_pretrained(out).chat_template == AutoTokenizer.from_pretrained(tiny_base_dir).chat_template
    )


async def test_what_cannot_be_imported_fails_with_the_reason(
    agent: Agent, desk: Desk, tiny_base_dir: Path, tmp_path: Path
) -> None:
    made(tmp_path / "theirs", tiny_base_dir, lora(use_dora=True))
    await agent.carry(an_import(desk, tmp_path / "theirs"))
    made(tmp_path / "torn", tiny_base_dir, lora())
    await agent.carry(an_import(desk, tmp_path / "torn", sha256="0" * 64))
    failures = [(finish.outcome, finish.failure.code) for finish in desk.finishes if finish.failure]
    assert failures == [("failed", "adapter_unsupported"), ("failed", "file_corrupt")]
    assert not desk.puts


async def test_a_lost_lease_ends_the_work_without_a_word(
    agent: Agent, desk: Desk, tiny_base_dir: Path, tmp_path: Path
) -> None:
    made(tmp_path / "theirs", tiny_base_dir, lora())
    task = asyncio.create_task(agent.carry(an_import(desk, tmp_path / "theirs")))
    await until(lambda: desk.renewals > 0, what="the lease renewed")
    desk.lost = True
    await task
    assert not desk.finishes
    assert not desk.puts
    assert not list(agent.folder.iterdir())


async def test_an_agent_that_ends_hands_it_back(agent: Agent, desk: Desk, tiny_base_dir: Path, tmp_path: Path) -> None:
    made(tmp_path / "theirs", tiny_base_dir, lora())
    desk.waiting.append(an_import(desk, tmp_path / "theirs"))

    async def at_once() -> None:
        return

    task = asyncio.create_task(Transfers(*agent.parts()).run(at_once))
    await until(lambda: desk.renewals > 0, what="the transfer begun")
    task.cancel()
    await asyncio.wait({task})
    assert [finish.outcome for finish in desk.finishes] == ["released"]
    assert not list(agent.folder.iterdir())
