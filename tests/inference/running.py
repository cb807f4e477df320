"""A running replica as the tests see it: over HTTP, through its heartbeats, and by its processes."""

import asyncio
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import psutil
import pytest

from service.contracts.replica import ReplicaHeartbeat
from tests.conftest import free_port
from tests.inference.adapters import lora
from tests.inference.conftest import BYTECODE, ServiceAndStorage, replica_settings, write_base

READY_SECONDS = 240.0
STALL_SECONDS = 2.0
PROMPT = "Name a colour."


@dataclass
class Replica:
    process: asyncio.subprocess.Process
    service: ServiceAndStorage
    session: aiohttp.ClientSession
    base: Path
    cache: Path
    log: Path

    @property
    def now(self) -> ReplicaHeartbeat:
        return self.service.heartbeats[-1]

    async def until(self, condition: Callable[[], bool], what: str, seconds: float = READY_SECONDS) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not condition():  # noqa: ASYNC110 - polled with a deadline
                    await asyncio.sleep(0.05)
        except TimeoutError:
            pytest.fail(f"not {what} within {seconds} s; the log ends:\n{self.log.read_text()[-3000:]}")

    async def until_state(self, state: str, since: int = 0) -> None:
        """Until the service has heard of `state`, in a heartbeat after the first `since`."""
        await self.until(lambda: any(beat.state == state for beat in self.service.heartbeats[since:]), state)

    async def post(
        self, path: str, body: dict[str, Any], headers: Mapping[str, str] | None = None, seconds: float = 90.0
    ) -> tuple[int, dict[str, Any], Any]:
        headers = {"authorization": f"Bearer {self.now.api_key}", **(headers or {})}
        async with (
            asyncio.timeout(seconds),
            self.session.post(f"{self.now.url}{path}", json=body, headers=headers) as response,
        ):
            return response.status, await response.json(), response.headers

    async def metrics(self) -> str:
        async with self.session.get(f"{self.now.url}/metrics") as response:
            return await response.text()

    async def chat(self, model: str, tokens: int = 8) -> tuple[list[int], str | None]:
        """The greedy answer's tokens, and the tier the adapter was found in."""
        status, body, headers = await self.post("/v1/chat/completions", chat(model, tokens, return_token_ids=True))
        assert status == 200, body
        return body["choices"][0]["token_ids"], headers.get("x-adapter-cache")

    async def status(self) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self.now.api_key}"}
        async with self.session.get(f"{self.now.url}/v1/weft/status", headers=headers) as response:
            return await response.json()

    def processes(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def engine(self) -> psutil.Process:
        return next(child for child in self.processes() if "EngineCore" in " ".join(child.cmdline()))

    def api_server(self) -> psutil.Process:
        return psutil.Process(self.process.pid).children()[0]


def chat(model: str, tokens: int = 8, **changes: Any) -> dict[str, Any]:
    message = {"role": "user", "content": PROMPT}
    return {"model": model, "messages": [message], "max_tokens": tokens, "temperature": 0, "ignore_eos": True} | changes


@asynccontextmanager
async def running_replica(service: ServiceAndStorage, folder: Path) -> AsyncIterator[Replica]:
    """Two slots, room for four adapters, on a tiny random base; not ready yet."""
    write_base(folder / "base")
    settings = replica_settings(
        service.url,
        folder / "cache",
        port=free_port(),
        base_source=str(folder / "base"),
        api_key="",
        max_loras=2,
        max_cpu_loras=4,
        max_lora_rank=16,
        kv_cache_gib=0.0625,
        heartbeat_seconds=0.2,
        canary_seconds=2.0,
        stall_seconds=STALL_SECONDS,
    )
    # In bfloat16 batches round differently, which on a random base flips near ties.
    variables = settings.for_child() | BYTECODE | {"WEFT_REPLICA_EXTRA_ARGS": '["--dtype", "float32"]'}
    log = folder / "log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "inference", env=variables, stdout=output, stderr=output
        )
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=90)) as session:
        replica = Replica(process, service, session, folder / "base", folder / "cache" / "adapters", log)
        yield replica
        if process.returncode is None:
            process.terminate()
            await process.wait()


def publish(replica: Replica, *seeds: int) -> list[str]:
    return [replica.service.publish(lora(seed)) for seed in seeds]


async def started(replica: Replica, body: dict[str, Any]) -> aiohttp.ClientResponse:
    """A stream whose first event has come."""
    headers = {"Authorization": f"Bearer {replica.now.api_key}"}
    response = await replica.session.post(f"{replica.now.url}/v1/chat/completions", json=body, headers=headers)
    await response.content.readuntil(b"\n\n")
    return response


async def tokens_of(replica: Replica, tenant: str) -> tuple[float, float]:
    """Of prompts and of answers, by the page of metrics."""
    lines = (await replica.metrics()).splitlines()
    counts = {line.split()[0]: float(line.split()[1]) for line in lines if line.startswith("weft_tokens_total")}
    name = 'weft_tokens_total{{kind="{}",tenant="{}"}}'
    return counts.get(name.format("prompt", tenant), 0.0), counts.get(name.format("completion", tenant), 0.0)


async def seconds_until_idle(replica: Replica) -> float:
    began = time.monotonic()
    async with asyncio.timeout(20):
        while (await replica.status())["in_flight"]:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return time.monotonic() - began


async def seconds_until_right(replica: Replica, adapter: str, expected: list[int]) -> float:
    """Until the first answer, which must be the right one."""
    began = time.monotonic()
    async with asyncio.timeout(20):
        while True:
            status, body, _ = await replica.post("/v1/chat/completions", chat(adapter, return_token_ids=True))
            if status == 200:
                assert body["choices"][0]["token_ids"] == expected
                return time.monotonic() - began
            await asyncio.sleep(0.05)


def raw_request(replica: Replica, body: bytes, receive_buffer: int) -> socket.socket:
    url = urlsplit(replica.now.url)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.connect((url.hostname, url.port))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {replica.now.api_key}\r\n"
    connection.sendall(f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def read_to_the_end(connection: socket.socket) -> None:
    connection.settimeout(10)
    while connection.recv(65536):
        pass
