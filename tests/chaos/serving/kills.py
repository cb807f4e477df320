"""One `kill -9` of each process of a stack with two replicas, spread over a run, and what each did to the traffic."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from tests.chaos.serving.traffic import Request
from tests.e2e.stack import Stack

FAILOVER_SECONDS = 2.0
"""After the death of one of two replicas, every adapter answers again so soon."""
RESTART_SECONDS = 30.0
"""The one service, database or store of the stack is back so soon."""
WHOLE_SECONDS = 180.0
"""Both replicas are ready again; vLLM takes most of a minute to start."""
STARTING = b"replica: starting vLLM"


@dataclass(frozen=True)
class Victim:
    """A process of `part`. Requests may fail for `seconds` after its end; `starts` says that vLLM starts anew."""

    name: str
    part: str
    find: Callable[[Stack], int]
    seconds: float
    starts: bool = False


@dataclass(frozen=True)
class Kill:
    victim: Victim
    at: float

    def explains(self, request: Request) -> bool:
        """Whether a request failed because of this kill: it was under way then, or began before all was mended."""
        return not request.wrong and request.ended >= self.at and request.began <= self.at + self.victim.seconds

    def told(self, requests: Sequence[Request]) -> dict[str, Any]:
        """What it did to the models that were asked for while it was being mended."""
        mine = [each for each in requests if self.explains(each)]
        waits = self._waits(mine)
        slowest = max(waits.values(), default=0.0)
        return {
            "victim": self.victim.name,
            "failed": sum(1 for each in mine if each.problem),
            "models_asked": len(waits),
            "slowest_answer_s": round(slowest, 2),
            "slowest_requests": self._requests_of(max(waits, key=waits.__getitem__), mine) if waits else [],
            "problem": "a model took too long to answer again" if slowest > self._limit else "",
        }

    def _requests_of(self, adapter: str, mine: Sequence[Request]) -> list[str]:
        """When one model was asked for, by the kill, and what came of it."""
        asked = [each for each in mine if each.ware.adapter == adapter][:5]
        return [f"{each.began - self.at:.2f} to {each.ended - self.at:.2f}: {each.told}" for each in asked]

    @property
    def _limit(self) -> float:
        return FAILOVER_SECONDS if self.victim.starts else RESTART_SECONDS

    def _waits(self, mine: Sequence[Request]) -> dict[str, float]:
        """By model: from the kill, or from its first request after it, to its first answer."""
        asked: dict[str, float] = {}
        answered: dict[str, float] = {}
        for each in sorted(mine, key=lambda request: request.ended):
            name = each.ware.adapter
            asked[name] = min(asked.get(name, float("inf")), max(self.at, each.began))
            if not each.problem:
                answered.setdefault(name, each.ended)
        return {name: max(0.0, answered[name] - asked[name]) for name in answered}


class Killer:
    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self.kills: list[Kill] = []
        self._before = {name: self._starts(name) for name in ("replica", "replica-2")}

    async def run(self, until: float, count: int) -> None:
        """The first `count` victims, evenly until the end, each only once the stack is whole again."""
        pause = max(5.0, (until - time.monotonic()) / (count + 1))
        for victim in VICTIMS[:count]:
            await asyncio.sleep(pause)
            await self._until_whole(until)
            if time.monotonic() >= until - FAILOVER_SECONDS:
                return
            pid = victim.find(self._stack)
            self.kills.append(Kill(victim, time.monotonic()))
            psutil.Process(pid).kill()
            print(f"killed {victim.name}", flush=True)

    def unexpected_starts(self) -> int:
        """How often vLLM was started anew without a kill that explains it."""
        caused = dict.fromkeys(self._before, 0)
        for kill in self.kills:
            if kill.victim.starts:
                caused[kill.victim.part] += 1
        return sum(max(0, self._starts(name) - self._before[name] - caused[name]) for name in self._before)

    async def _until_whole(self, until: float) -> None:
        deadline = min(until, time.monotonic() + WHOLE_SECONDS)
        while time.monotonic() < deadline and not all(map(self._serves, self._before)):  # noqa: ASYNC110 - a log
            await asyncio.sleep(0.5)

    def _serves(self, part: str) -> bool:
        """Ready since it last started."""
        log = self._stack.data.log(part).read_bytes()
        return log.rfind(b"replica: vLLM ready") > log.rfind(STARTING)

    def _starts(self, part: str) -> int:
        return self._stack.data.log(part).read_bytes().count(STARTING)


def _part(name: str) -> Callable[[Stack], int]:
    return lambda stack: stack.pids()[name]


def _server(part: str) -> Callable[[Stack], int]:
    """vLLM's API server: the launcher's only child."""
    return lambda stack: psutil.Process(stack.pids()[part]).children()[0].pid


def _engine(part: str) -> Callable[[Stack], int]:
    def find(stack: Stack) -> int:
        below = psutil.Process(stack.pids()[part]).children(recursive=True)
        return next(each.pid for each in below if "EngineCore" in each.name() + " ".join(each.cmdline()))

    return find


VICTIMS = (
    Victim("engine of replica 2", "replica-2", _engine("replica-2"), FAILOVER_SECONDS, starts=True),
    Victim("trainer", "trainer", _part("trainer"), 0.0),
    Victim("launcher of replica 1", "replica", _part("replica"), FAILOVER_SECONDS, starts=True),
    Victim("object store", "objects", _part("objects"), RESTART_SECONDS),
    Victim("vLLM server of replica 2", "replica-2", _server("replica-2"), FAILOVER_SECONDS, starts=True),
    Victim("service", "service", _part("service"), RESTART_SECONDS),
    Victim("database", "postgres", _part("postgres"), RESTART_SECONDS),
    Victim("engine of replica 1", "replica", _engine("replica"), FAILOVER_SECONDS, starts=True),
)
