"""CPU time of the gateway per request and per event: `python -m pytest tests/benchmarks/gateway.py -s`.

The real service in a process of its own, with authentication, metering and spool; another process answers as vLLM does,
a third asks. Only the service's own CPU time counts, and a busy machine, which makes it several times as long, is
measured by the plainest route and taken out. Fails where a core could not carry 2,500 requests or 20,000 events/s.
"""

import asyncio
import json
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
import psutil
import pytest
import uvicorn

from service.settings import ServiceSettings
from tests.conftest import free_port, running, wait_until
from tests.service.gateway.captured import CHAT_COUNTED, CHAT_WHOLE
from tests.service.gateway.conftest import Tenant, make_tenant
from tests.service.gateway.upstream import named
from tests.service.stage import open_stage

ROOT = Path(__file__).parents[2]
EVENTS = 200
STEP_SECONDS = 0.01
CLIENTS = 32
SECONDS = 5.0
HEALTH_COST = 62.0
"""What `/healthz` took on the idle machine on which the targets were set, in microseconds."""
UPSTREAM_KEY = "k" * 32


def serve_upstream(port: int) -> None:
    """As little as can be between the socket and vLLM's bytes: what is measured is not this."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while (message := await receive()).get("more_body"):
            body += message["body"]
        asked = json.loads(body + message["body"])
        stream = asked.get("stream", False)
        kind = b"text/event-stream" if stream else b"application/json"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        if stream:
            for event in CHAT_COUNTED[:1] + CHAT_COUNTED[1:2] * EVENTS + CHAT_COUNTED[4:]:
                await send({"type": "http.response.body", "body": named(event, asked["model"]), "more_body": True})
                # One write per event, as an engine's steps make them.
                await asyncio.sleep(STEP_SECONDS)
        await send({"type": "http.response.body", "body": b"" if stream else named(CHAT_WHOLE, asked["model"])})

    uvicorn.run(app, port=port, log_level="error", access_log=False, lifespan="off")


def environment(settings: ServiceSettings) -> dict[str, str]:
    secret = {"database_url", "control_database_url", "admin_key", "worker_token", "replica_token", "secret"}
    store = settings.store
    assert store.access_key is not None
    assert store.secret_key is not None
    return {
        "PYTHONPATH": str(ROOT),
        # Its one replica announces itself once.
        "WEFT_REPLICA_TTL_SECONDS": "600",
        "WEFT_PORT": str(settings.port),
        "WEFT_SPOOL_DIR": str(settings.spool_dir),
        "WEFT_BASE_MODELS": json.dumps([base.model_dump() for base in settings.base_models]),
        "WEFT_STORE__ENDPOINT": str(store.endpoint),
        "WEFT_STORE__ACCESS_KEY": store.access_key.get_secret_value(),
        "WEFT_STORE__SECRET_KEY": store.secret_key.get_secret_value(),
        **{f"WEFT_{name.upper()}": getattr(settings, name).get_secret_value() for name in secret},
    }


@pytest.fixture(scope="module")
def tenant(service_settings: ServiceSettings) -> Tenant:
    async def made() -> Tenant:
        async with open_stage(service_settings) as stage:
            return await make_tenant(stage)

    return asyncio.run(made())


@pytest.fixture(scope="module")
def gateway(
    service_settings: ServiceSettings, tenant: Tenant, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[int]:
    """The service's process id, once it has found its one replica."""
    port, folder, settings = free_port(), tmp_path_factory.mktemp("bench"), service_settings
    code = f"from tests.benchmarks.gateway import serve_upstream; serve_upstream({port})"
    variables = environment(settings)
    url = f"http://127.0.0.1:{settings.port}"
    base = settings.base_models[0]
    beat = {
        "url": f"http://127.0.0.1:{port}", "api_key": UPSTREAM_KEY, "base_model": base.name, "state": "ready",
        "base_fingerprint": base.fingerprint, "max_loras": 4, "max_lora_rank": 64, "context_length": 1024,
    }  # fmt: skip
    token = settings.replica_token.get_secret_value()

    def known() -> bool:
        try:
            headers = {"authorization": f"Bearer {token}"}
            return httpx2.put(f"{url}/internal/replicas/r", json=beat, headers=headers).status_code == 200
        except httpx2.TransportError:
            return False

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    with (
        running([sys.executable, "-c", code], folder / "upstream.log", env=variables),
        running([sys.executable, "-m", "service"], folder / "service.log", env=variables) as process,
    ):
        wait_until(answers, 60, "the upstream answers")
        wait_until(known, 60, "the service knows its replica")
        yield process.pid


Ask = Callable[[aiohttp.ClientSession], Awaitable[None]]


async def load(process: psutil.Process, key: str, ask: Ask, seconds: float) -> tuple[int, float]:
    """How often `ask` was answered, and the CPU seconds that the service took for it."""
    done = 0

    async def client(session: aiohttp.ClientSession, until: float) -> None:
        nonlocal done
        while time.monotonic() < until:
            await ask(session)
            done += 1

    async with aiohttp.ClientSession(headers={"authorization": f"Bearer {key}"}) as session:
        await asyncio.gather(*(client(session, time.monotonic() + 0.5) for _ in range(CLIENTS)))
        done, before = 0, sum(process.cpu_times()[:2])
        await asyncio.gather(*(client(session, time.monotonic() + seconds) for _ in range(CLIENTS)))
    return done, sum(process.cpu_times()[:2]) - before


@pytest.mark.parametrize(("stream", "units", "target"), [(False, 1, 400), (True, EVENTS, 50)])
def test_cost(
    gateway: int, tenant: Tenant, service_settings: ServiceSettings, stream: bool, units: int, target: int
) -> None:
    process = psutil.Process(gateway)
    url = f"http://127.0.0.1:{service_settings.port}"
    body = {"model": tenant.model, "messages": [{"role": "user", "content": "Hi " * 100}], "stream": stream}

    async def health(session: aiohttp.ClientSession) -> None:
        async with session.get(f"{url}/healthz") as answer:
            assert answer.status == 200

    async def completion(session: aiohttp.ClientSession) -> None:
        async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
            text = await answer.read()
            assert answer.status == 200, text
            assert not stream or text.endswith(b"[DONE]\n\n")

    answers, cpu = asyncio.run(load(process, tenant.key, health, 2.0))
    slowness = cpu / answers * 1e6 / HEALTH_COST
    answers, cpu = asyncio.run(load(process, tenant.key, completion, SECONDS))
    cost = cpu / answers / units * 1e6
    what, rss = "event" if stream else "request", process.memory_info().rss >> 20
    print(f"\n{cost:.0f} us CPU per {what}, machine {slowness:.1f} times as slow as idle: {cost / slowness:.0f} us,")
    print(f"{slowness * 1e6 / cost:.0f} {what}s/s on a core; {answers} answers, {rss} MiB")
    assert cost / slowness < target
