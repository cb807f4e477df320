"""What flips are made on: two gateways over one database, and behind them a stand-in replica or a real vLLM."""

import asyncio
import random
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from deploy.local import objectstore, postgres, secrets, tiny_base
from service.contracts.base_model import BaseModelInfo
from service.contracts.replica import ReplicaHeartbeat
from service.contracts.store import ObjectStore
from service.replicas.register import announce
from service.settings import ServiceSettings
from tests.benchmarks.serving.marks import MarkMaker
from tests.benchmarks.serving.shop import Shop
from tests.chaos.flips.traffic import Ground
from tests.chaos.killed import forks, serving
from tests.conftest import free_port, running, wait_until
from tests.e2e.stack import Stack
from tests.service.gateway.captured import CHAT_COUNTED, CHAT_WHOLE
from tests.service.gateway.registered import registrable
from tests.service.gateway.upstream import Upstream, named
from tests.service.stage import Stage, open_stage

MOST_SECONDS = 0.2
"""The stand-in takes up to so long for an answer: longer than most pauses between flips."""
STEPS = 3


class Speaking(Upstream):
    """A replica that says the id of the adapter that it is asked for, at once or bit by bit."""

    async def usual(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        model, seconds = body["model"], random.uniform(0, MOST_SECONDS)
        # What is remembered of thousands of requests is of no use here.
        self.bodies.clear()
        self.headers.clear()
        if body.get("stream"):
            head, step, *_, counts, done = (named(event, model) for event in CHAT_COUNTED)
            bits = [model[place : place + 24] for place in range(0, len(model), 24)]
            steps = [step.replace(b"He said ", bit.encode()) for bit in bits]
            return await self.stream(request, [head, *steps, counts, done], seconds / STEPS)
        await asyncio.sleep(seconds)
        whole = CHAT_WHOLE.replace(b'"content":"He said \\"usage\\":{}!"', f'"content":"{model}"'.encode())
        return web.Response(body=named(whole, model), content_type="application/json")


@contextmanager
def two_gateways(settings: ServiceSettings) -> Iterator[list[str]]:
    second = settings.model_copy(update={"port": free_port(), "spool_dir": settings.spool_dir / "second"})
    context = forks()
    with serving(context, settings), serving(context, second):
        yield [f"http://127.0.0.1:{each.port}" for each in (settings, second)]


@asynccontextmanager
async def stand_in(settings: ServiceSettings, client: aiohttp.ClientSession, versions: int) -> AsyncIterator[Ground]:
    """Over a migrated database and a store that run."""
    settings = settings.model_copy(update={"replica_ttl_seconds": 3600.0})
    upstream = Speaking(free_port())
    async with open_stage(settings) as stage:
        await _announced(stage, upstream)
        project = await stage.project()
        key = await stage.key(project)
        made = [await registrable(stage, project) for _ in range(versions)]
        upstream.start()
        try:
            with two_gateways(settings) as urls:
                ground = Ground(urls, key, [adapter for _, adapter in made], stage.resources)
                await ground.register(client, [model for model, _ in made])
                yield ground
        finally:
            upstream.stop()


async def _announced(stage: Stage, upstream: Upstream) -> None:
    base = stage.resources.settings.base_models[0]
    beat = ReplicaHeartbeat(
        url=upstream.url,
        api_key=upstream.api_key,
        base_model=base.name,
        base_fingerprint=base.fingerprint,
        state="ready",
        max_loras=4,
        max_lora_rank=64,
        context_length=1024,
    )
    async with stage.resources.database.control() as session:
        await announce(session, "stand-in", beat)


@asynccontextmanager
async def vllm(root: Path, client: aiohttp.ClientSession, versions: int) -> AsyncIterator[Ground]:
    """The whole stack over the tiny base, with a second gateway beside its own, and marked adapters."""
    maker = await asyncio.to_thread(MarkMaker, tiny_base.MODEL_DIR)
    stack = Stack(root)
    await asyncio.to_thread(stack.start)
    try:
        async with Shop(stack.data) as shop:
            key = await asyncio.to_thread(stack.project, "flips")
            stall = await shop.stall(stack.url, key)
            marks = maker.marks(versions)
            made = [(mark, maker.make(mark, seed).files) for seed, mark in enumerate(marks)]
            wares = await shop.put_all_on_sale([stall], made)
            second = shop.resources.settings.model_copy(update={"port": free_port(), "spool_dir": root / "spool"})
            with serving(forks(), second):
                ground = Ground([stack.url, f"http://127.0.0.1:{second.port}"], key, marks, shop.resources)
                await ground.register(client, [ware.model for ware in wares])
                yield ground
    finally:
        await asyncio.to_thread(stack.stop)


@contextmanager
def parts() -> Iterator[ServiceSettings]:
    """A PostgreSQL and an object store of their own, durable as an operator's, and settings of a service over them."""
    # Not in a folder of pytest's: as root PostgreSQL runs as another user, which must get there.
    with tempfile.TemporaryDirectory(prefix="weft-flips-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        known = secrets.load_or_create(folder)
        server = postgres.prepare(folder / "postgres", known)
        store = objectstore.prepare(folder / "objects", free_port(), known)
        with (
            running(server.argv, folder / "postgres.log", **server.identity),
            running(store.argv, folder / "objects.log", env=store.env),
        ):
            wait_until(lambda: asyncio.run(server.ready()), 60, "PostgreSQL ready")
            asyncio.run(server.create_roles())
            asyncio.run(server.create_database("weft"))
            asyncio.run(postgres.migrate(server.url("weft_owner", "weft")))
            ObjectStore(store.settings).ensure_bucket()
            yield _settings(folder, known, server, store)


def _settings(
    folder: Path, known: secrets.Secrets, server: postgres.Postgres, store: objectstore.LocalObjectStore
) -> ServiceSettings:
    base = BaseModelInfo(
        name="weft-tiny",
        source="tiny",
        fingerprint="f" * 64,
        chat_template_sha256="c" * 64,
        architecture="LlamaForCausalLM",
        hidden_size=128,
        context_length=1024,
        parameters=1_000_000,
    )
    return ServiceSettings.model_validate(
        {
            "port": free_port(),
            "database_url": server.url("weft_api", "weft"),
            "control_database_url": server.url("weft_control", "weft"),
            "store": store.settings.model_dump(),
            "base_models": [base.model_dump()],
            "spool_dir": folder / "spool",
            **known.model_dump(include={"admin_key", "worker_token", "replica_token", "secret"}),
        }
    )
