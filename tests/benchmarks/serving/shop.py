"""Marked adapters put on sale in a running stack: objects in its store, rows in its database, names for its tenants.

As a finished job leaves them, without the training: one real job of each project is cloned for each adapter, since
every final model needs a job of its own. What is registered goes through the registry itself.
"""

import asyncio
import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import MappingProxyType, TracebackType

import aiohttp
import asyncpg

import service.app  # noqa: F401 - the registry's tables refer to others, which must be known too
from deploy.local import base_model, objectstore, postgres, secrets
from deploy.local.folder import DataFolder
from service.adapters.registry import Trained, publish
from service.contracts.base_model import BaseModelInfo
from service.contracts.ids import AdapterId, JobId, ProjectId, fine_tuned_model_name, new_job_id
from service.contracts.layout import adapter_prefix
from service.contracts.manifest import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    MANIFEST,
    AdapterManifest,
    Canary,
    ManifestFile,
    adapter_id_of,
)
from service.contracts.manifest import canonical_json as canonical
from service.resources import Resources
from service.settings import ServiceSettings

CLONE = """
insert into jobs select (jsonb_populate_record(j, jsonb_build_object(
  'id', $2::text, 'status', 'succeeded', 'model_name', null, 'fine_tuned_model', null, 'finished_at', now()
))).* from jobs j where id = $1
"""
AT_ONCE = 8
LOADS = re.compile(r'weft_adapter_load_seconds_sum\{tier="(store|disk)"\} (\S+)')


@dataclass(frozen=True)
class Ware:
    """One model on sale."""

    project: str
    key: str
    model: str
    adapter: str
    mark: str


@dataclass(frozen=True)
class Stall:
    """One tenant's place in the shop: a project, a key of it, and a job to clone."""

    project: ProjectId
    key: str
    job: JobId


class Shop:
    """Over a stack that runs. An async context."""

    def __init__(self, data: DataFolder, base: str | None = None) -> None:
        known = secrets.load_or_create(data.root)
        self._server = postgres.prepare(data.postgres, known)
        store = objectstore.prepare(data.objects, data.remembered_ports()["objects"], known)
        self.base: BaseModelInfo = base_model.describe(base)
        self.store_url = store.settings.endpoint
        self._resources = Resources.of(
            ServiceSettings.model_validate(
                {
                    "database_url": self._server.url("weft_api"),
                    "control_database_url": self._server.url("weft_control"),
                    "store": store.settings.model_dump(),
                    "base_models": [self.base.model_dump()],
                    "spool_dir": data.root / "spool",
                    **known.model_dump(include={"admin_key", "worker_token", "replica_token", "secret"}),
                }
            )
        )
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> "Shop":
        self._stack.push_async_callback(self._resources.database.close)
        self._session = await self._stack.enter_async_context(aiohttp.ClientSession())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @property
    def resources(self) -> Resources:
        return self._resources

    async def stall(self, url: str, key: str) -> Stall:
        """A place for the tenant of that key. Its job is created and cancelled through the API."""
        headers = {"authorization": f"Bearer {key}"}
        line = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
        form = aiohttp.FormData({"purpose": "fine-tune"})
        form.add_field("file", (json.dumps(line) + "\n") * 10, filename="train.jsonl")
        async with self._session.post(f"{url}/v1/files", data=form, headers=headers) as answer:
            file = (await answer.json())["id"]
        body = {"model": self.base.name, "training_file": file}
        async with self._session.post(f"{url}/v1/fine_tuning/jobs", json=body, headers=headers) as answer:
            job = (await answer.json())["id"]
        async with self._session.post(f"{url}/v1/fine_tuning/jobs/{job}/cancel", headers=headers) as answer:
            await answer.read()
        project = await self._value("select project_id from jobs where id = $1", job)
        return Stall(ProjectId(project), key, JobId(job))

    async def put_on_sale(
        self,
        stall: Stall,
        mark: str,
        files: dict[str, bytes],
        canary: Canary | None = None,
        stored: Mapping[str, bytes] | None = None,
    ) -> Ware:
        """`stored` is what the store has instead of the files, where that is not what was published."""
        job = new_job_id()
        manifest = self._manifest(job, files, canary)
        adapter = adapter_id_of(manifest)
        held = files if stored is None else stored
        await self.store(stall.project, adapter, {**held, MANIFEST: canonical(manifest)})
        connection = await self._connect()
        try:
            await connection.execute(CLONE, stall.job, job)
        finally:
            await connection.close()
        name = fine_tuned_model_name(self.base.name, "weft", mark)
        async with self._resources.database.control() as session:
            await publish(session, Trained(stall.project, job, 1, manifest), name)
        return Ware(stall.project, stall.key, name, adapter, mark)

    async def store(self, project: str, adapter: str, files: Mapping[str, bytes]) -> None:
        prefix = adapter_prefix(ProjectId(project), AdapterId(adapter))
        for name, content in files.items():
            await asyncio.to_thread(self._resources.store.put, prefix + name, content)

    async def stored(self, ware: Ware) -> list[str]:
        """The keys of what the store holds of an adapter."""
        prefix = adapter_prefix(ProjectId(ware.project), AdapterId(ware.adapter))
        return await asyncio.to_thread(self._resources.store.keys, prefix)

    async def put_all_on_sale(
        self,
        stalls: Sequence[Stall],
        made: Sequence[tuple[str, dict[str, bytes]]],
        canaries: Mapping[str, Canary | None] = MappingProxyType({}),
    ) -> list[Ware]:
        """Dealt out to the stalls in turn. `canaries` are by mark."""
        free = asyncio.Semaphore(AT_ONCE)

        async def one(number: int, mark: str, files: dict[str, bytes]) -> Ware:
            async with free:
                return await self.put_on_sale(stalls[number % len(stalls)], mark, files, canaries.get(mark))

        return await asyncio.gather(*(one(number, *each) for number, each in enumerate(made)))

    async def evict(self, adapter: str, replica: str | None = None) -> bool:
        """Takes an adapter out of one replica, or of all. Whether every one did."""
        rows = await self.replicas(replica)
        done = [await self._evicted(row["url"], row["api_key"], adapter) for row in rows]
        return all(done)

    async def replicas(self, only: str | None = None) -> list[asyncpg.Record]:
        """As they last announced themselves."""
        query = "select id, url, api_key, state from replicas where $1 = '' or id = $1"
        connection = await self._connect()
        try:
            return await connection.fetch(query, only or "")
        finally:
            await connection.close()

    async def load_seconds(self) -> dict[str, float]:
        """What loads have taken so far on all replicas, by where they loaded from."""
        seconds: dict[str, float] = {"store": 0.0, "disk": 0.0}
        for row in await self.replicas():
            async with self._session.get(f"{row['url']}/metrics") as answer:
                for tier, value in LOADS.findall(await answer.text()):
                    seconds[tier] += float(value)
        return seconds

    async def bytes_alone(self, ware: Ware) -> float:
        """Seconds that the weights of an adapter take from the store, when nothing is done with them."""
        key = adapter_prefix(ProjectId(ware.project), AdapterId(ware.adapter)) + ADAPTER_WEIGHTS
        url = self._resources.store.presign_get(key, 60)
        began = time.perf_counter()
        async with self._session.get(url) as answer:
            answer.raise_for_status()
            async for _ in answer.content.iter_any():
                continue
        return time.perf_counter() - began

    async def _evicted(self, url: str, key: str, adapter: str) -> bool:
        headers = {"authorization": f"Bearer {key}"}
        address, body = f"{url}/v1/weft/adapters/evict", {"adapter_id": adapter}
        try:
            timeout = aiohttp.ClientTimeout(total=40)
            async with self._session.post(address, json=body, headers=headers, timeout=timeout) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    def _manifest(self, job: str, files: dict[str, bytes], canary: Canary | None) -> AdapterManifest:
        config = json.loads(files[ADAPTER_CONFIG])
        return AdapterManifest(
            base_model=self.base.name,
            base_fingerprint=self.base.fingerprint,
            chat_template_sha256=self.base.chat_template_sha256,
            rank=config["r"],
            alpha=config["lora_alpha"],
            target_modules=tuple(config["target_modules"]),
            job_id=job,
            step=1,
            canary=canary,
            files=tuple(
                ManifestFile(path=name, sha256=hashlib.sha256(content).hexdigest(), size=len(content))
                for name, content in files.items()
            ),
        )

    async def _value(self, query: str, *arguments: object) -> str:
        connection = await self._connect()
        try:
            return str(await connection.fetchval(query, *arguments))
        finally:
            await connection.close()

    async def _connect(self) -> asyncpg.Connection:
        return await self._server.connect("postgres", postgres.DATABASE)
