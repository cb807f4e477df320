"""Every model on sale asked until it answers right, so many at once: what a kill cost each of them."""

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.benchmarks.serving.shop import Ware
from tests.chaos.serving.traffic import Market, Traffic

AT_ONCE = 4
AGAIN_SECONDS = 0.05
GIVE_UP_SECONDS = 60.0


@dataclass
class Sweep:
    """What became of the models, by name: when each was asked first and when it answered right."""

    asked: dict[str, float] = field(default_factory=dict)
    answered: dict[str, float] = field(default_factory=dict)

    def waits(self, since: float) -> dict[str, float]:
        """Seconds from a model's first request, or from `since` where that came later, to its right answer."""
        return {name: max(0.0, at - max(since, self.asked[name])) for name, at in self.answered.items()}

    @property
    def never_answered(self) -> int:
        return len(self.asked) - len(self.answered)

    def told(self, since: float) -> dict[str, Any]:
        waits = self.waits(since)
        slowest = max(waits, key=waits.__getitem__, default="")
        last = max(self.answered.values(), default=since)
        return {
            "models_asked": len(self.asked),
            "models_never_answered": self.never_answered,
            "slowest_answer_s": round(waits[slowest], 2) if slowest else None,
            "slowest_asked_after_s": round(self.asked[slowest] - since, 2) if slowest else None,
            "all_answered_after_s": round(last - since, 2),
        }


async def swept(session: aiohttp.ClientSession, traffic: Traffic, market: Market, seed: int) -> Sweep:
    """Leaves out what is taken off sale meanwhile."""
    wares = random.Random(seed).sample(market.wares, len(market.wares))
    found, free = Sweep(), asyncio.Semaphore(AT_ONCE)

    async def one(ware: Ware) -> None:
        async with free:
            if not market.may_be_gone(ware):
                await _asked(session, traffic, market, ware, found)

    await asyncio.gather(*(one(ware) for ware in wares))
    return found


async def _asked(session: aiohttp.ClientSession, traffic: Traffic, market: Market, ware: Ware, found: Sweep) -> None:
    began = found.asked[ware.model] = time.monotonic()
    while True:
        request = await traffic.ask(session, ware)
        if not request.problem or request.ended > began + GIVE_UP_SECONDS:
            break
        await asyncio.sleep(AGAIN_SECONDS)
    if market.may_be_gone(ware):
        del found.asked[ware.model]
    elif not request.problem:
        found.answered[ware.model] = request.ended
