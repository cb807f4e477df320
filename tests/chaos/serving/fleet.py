"""The replicas of a stack from outside: which are whole, what they hold, and every life that vLLM has had in them."""

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Set

import aiohttp
import asyncpg
import psutil

from service.contracts.replica import ReplicaStatus
from tests.benchmarks.serving.shop import Shop
from tests.e2e.stack import Stack

PARTS = {"local": "replica", "local-2": "replica-2"}
"""The part of the stack by the replica's id."""
ENGINE = "EngineCore"
LOOK_SECONDS = 0.3
"""Far less than vLLM takes to start: no life is missed."""
PATIENCE = aiohttp.ClientTimeout(total=5)


class Fleet:
    def __init__(self, shop: Shop, client: aiohttp.ClientSession) -> None:
        self._shop = shop
        self._client = client

    async def status(self, replica: str) -> ReplicaStatus | None:
        """What a replica that is ready holds and does; nothing where it is not, or does not answer."""
        try:
            rows = await self._shop.replicas(replica)
            if not rows or rows[0]["state"] != "ready":
                return None
            headers = {"authorization": f"Bearer {rows[0]['api_key']}"}
            address = f"{rows[0]['url']}/v1/weft/status"
            async with self._client.get(address, headers=headers, timeout=PATIENCE) as answer:
                return ReplicaStatus.model_validate_json(await answer.read()) if answer.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return None

    async def until_whole(self, seconds: float) -> bool:
        """Whether all replicas serve within so long."""

        async def whole() -> bool:
            return None not in [await self.status(replica) for replica in PARTS]

        return await _within(seconds, whole)

    async def until_idle(self, seconds: float) -> bool:
        """Whether every turn that was taken is given back within so long."""

        async def idle() -> bool:
            found = [await self.status(replica) for replica in PARTS]
            return all(each is not None and not each.in_flight and not each.waiting for each in found)

        return await _within(seconds, idle)

    async def until_without(self, adapters: Set[str], seconds: float) -> bool:
        """Whether no replica holds any of these, in memory or on disk, within so long."""

        async def without() -> bool:
            found = [await self.status(replica) for replica in PARTS]
            return all(each is not None and not adapters & each.adapters.keys() for each in found)

        return await _within(seconds, without)


async def _within(seconds: float, condition: Callable[[], Awaitable[bool]]) -> bool:
    deadline = time.monotonic() + seconds
    while not await condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.2)
    return True


class Lives:
    """Servers and engines of vLLM by part, each known by its process and when that started."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._servers: dict[str, set[tuple[int, float]]] = defaultdict(set)
        self._engines: dict[str, set[tuple[int, float]]] = defaultdict(set)

    async def watch(self, over: asyncio.Event) -> None:
        while not over.is_set():
            await asyncio.to_thread(self.look)
            await asyncio.sleep(LOOK_SECONDS)

    def look(self) -> None:
        launchers = self._stack.pids()
        for part in PARTS.values():
            # What is gone by now was seen before, or is a launcher that is being replaced.
            with contextlib.suppress(psutil.NoSuchProcess, KeyError):
                for server in psutil.Process(launchers[part]).children():
                    self._servers[part].add((server.pid, server.create_time()))
                    self._engines[part] |= {(each.pid, each.create_time()) for each in _engines(server)}

    def deaths(self, part: str) -> int:
        """How many of them were replaced."""
        return max(len(self._servers[part]), len(self._engines[part])) - 1


def server_of(stack: Stack, part: str) -> int:
    """vLLM's API server: the launcher's only child."""
    return psutil.Process(stack.pids()[part]).children()[0].pid


def engine_of(stack: Stack, part: str) -> int:
    return _engines(psutil.Process(server_of(stack, part)))[0].pid


def _engines(server: psutil.Process) -> list[psutil.Process]:
    """Not what an engine forks for a moment, which has its name."""
    return [each for each in server.children() if ENGINE in each.name() + " ".join(each.cmdline())]
