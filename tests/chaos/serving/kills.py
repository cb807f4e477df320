"""One `kill -9` of each process of a stack with two replicas, spread over a run, and what each did to the traffic."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import aiohttp
import asyncpg
import psutil

from tests.benchmarks.serving.shop import Shop
from tests.chaos.serving.fleet import Fleet, engine_of, server_of
from tests.chaos.serving.sweep import Sweep, swept
from tests.chaos.serving.traffic import Market, Request, Traffic
from tests.e2e.stack import Stack

FAILOVER_SECONDS = 2.0
"""After the death of one of two replicas, every adapter answers again so soon."""
RESTART_SECONDS = 30.0
"""The one service, database or store of the stack is back so soon."""
SETTLE_SECONDS = 1.0
"""Once it is back: connections to it are made anew, and what it kept waiting comes through."""
WHOLE_SECONDS = 240.0
"""Both replicas are ready again; vLLM takes most of a minute to start, more under traffic."""
LOOK_SECONDS = 0.05


@dataclass
class Ground:
    """What the killer works on."""

    stack: Stack
    shop: Shop
    client: aiohttp.ClientSession
    fleet: Fleet
    market: Market
    traffic: Traffic


Ready = Callable[[Ground], Awaitable[bool]]


@dataclass(frozen=True)
class Victim:
    """A process of `part`. `ready` says whether the part is back, where all requests need it; `starts` that vLLM starts
    anew, beside a replica that goes on.
    """

    name: str
    part: str
    find: Callable[[Stack], int]
    ready: Ready | None = None
    starts: bool = False


@dataclass
class Kill:
    victim: Victim
    at: float
    back: float | None = None
    """When the part was seen to work again."""
    sweep: Sweep = field(default_factory=Sweep)

    @property
    def mended(self) -> float:
        """From here on a new request must not fail because of it."""
        if self.victim.starts:
            return self.at + FAILOVER_SECONDS
        if self.victim.ready is None:
            return self.at
        return float("inf") if self.back is None else self.back + SETTLE_SECONDS

    def explains(self, request: Request) -> bool:
        """Whether a request failed because of this kill: it was under way then, or began before all was mended."""
        if request.wrong or (self.victim.ready is None and not self.victim.starts):
            return False
        return request.ended >= self.at and request.began <= self.mended

    def told(self, requests: Sequence[Request]) -> dict[str, Any]:
        """What it did to all requests, and to each model on sale."""
        since = self.at if self.back is None else self.back
        return {
            "victim": self.victim.name,
            "failed": sum(1 for each in requests if each.problem and self.explains(each)),
            "back_after_s": None if self.back is None else round(self.back - self.at, 2),
            **self.sweep.told(since),
            "problem": self._problem(since),
        }

    def _problem(self, since: float) -> str:
        if self.victim.ready is not None and (self.back is None or self.back - self.at > RESTART_SECONDS):
            return "it was not back in time"
        if not self.sweep.answered or self.sweep.never_answered:
            return f"{self.sweep.never_answered} of {len(self.sweep.asked)} models never answered again"
        slowest = max(self.sweep.waits(since).values())
        return f"a model took {slowest:.2f} s to answer again" if slowest > FAILOVER_SECONDS else ""


class Killer:
    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self.kills: list[Kill] = []

    async def run(self, seconds: float, victims: Sequence[Victim]) -> None:
        """Evenly over so long, or as long as it takes: each only once the stack is whole again, as it is at the end."""
        began, pause = time.monotonic(), seconds / (len(victims) + 1)
        for number, victim in enumerate(victims, start=1):
            await asyncio.sleep(began + number * pause - time.monotonic())
            if not await self._ground.fleet.until_whole(WHOLE_SECONDS):
                print(f"the stack was not whole again; {victim.name} is not killed", flush=True)
                return
            await self._kill(victim)
        await self._ground.fleet.until_whole(WHOLE_SECONDS)

    async def _kill(self, victim: Victim) -> None:
        pid = victim.find(self._ground.stack)
        kill = Kill(victim, time.monotonic())
        self.kills.append(kill)
        process = psutil.Process(pid)
        process.kill()
        print(f"killed {victim.name}", flush=True)
        ground = self._ground
        sweeping = swept(ground.client, ground.traffic, ground.market, seed=len(self.kills))
        kill.sweep, _ = await asyncio.gather(sweeping, self._until_back(kill, process))

    async def _until_back(self, kill: Kill, process: psutil.Process) -> None:
        ready = kill.victim.ready
        if ready is None:
            return
        await asyncio.to_thread(process.wait, RESTART_SECONDS)  # or the old one might still answer
        while time.monotonic() < kill.at + 2 * RESTART_SECONDS:
            asked = time.monotonic()
            if await ready(self._ground):
                kill.back = asked
                return
            await asyncio.sleep(LOOK_SECONDS)


async def _service_answers(ground: Ground) -> bool:
    return await _answers(ground.client, f"{ground.stack.url}/healthz")


async def _store_answers(ground: Ground) -> bool:
    return await _answers(ground.client, ground.shop.store_url)


async def _answers(client: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with client.get(url, timeout=aiohttp.ClientTimeout(total=1)) as answer:
            return answer.status < 500
    except (aiohttp.ClientError, TimeoutError):
        return False


async def _database_answers(ground: Ground) -> bool:
    try:
        async with asyncio.timeout(1):
            await ground.shop.replicas(None)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
        return False
    return True


def _part(name: str) -> Callable[[Stack], int]:
    return lambda stack: stack.pids()[name]


VICTIMS = (
    Victim("engine of replica 2", "replica-2", partial(engine_of, part="replica-2"), starts=True),
    Victim("trainer", "trainer", _part("trainer")),
    Victim("launcher of replica 1", "replica", _part("replica"), starts=True),
    Victim("object store", "objects", _part("objects"), _store_answers),
    Victim("vLLM server of replica 2", "replica-2", partial(server_of, part="replica-2"), starts=True),
    Victim("service", "service", _part("service"), _service_answers),
    Victim("database", "postgres", _part("postgres"), _database_answers),
    Victim("engine of replica 1", "replica", partial(engine_of, part="replica"), starts=True),
)
