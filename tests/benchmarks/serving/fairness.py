"""Tenants side by side on one replica: a flood beside a newcomer, and two floods beside each other.

A client that is refused waits for as long as it was asked to, as OpenAI's own clients do.

What a newcomer waits is seen from outside, not only told by the replica: its time to first token beside the flood, less
that when it is alone, less what its adapter took to load when it was cold. What is left are the engine's steps, which
are as long as the flood makes them: the one that runs when the request comes, and the request's own. Anything above
those is a wait for admission, whoever calls it what.
"""

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.benchmarks.serving.load import Answer, Server, ask, milliseconds, percentile
from tests.benchmarks.serving.shop import Shop, Ware

TOKENS = 16
FLOOD = 400
"""Clients of one flood: more than a replica lets one tenant have inside and waiting."""
ALIKE = 120
"""Clients of each of two floods: fewer, so that neither is refused and both always have somebody waiting."""
SETTLE_SECONDS = 5.0
ALONE = 9
"""Requests of the newcomer when nobody else asks, warm and cold."""
STEPS = 2
"""Of the engine, before a request has its first token."""

Figures = dict[str, Any]


@dataclass
class Flood:
    """What one tenant's crowd has had so far."""

    tokens: int = 0
    answered: int = 0
    unmarked: int = 0
    """Answers that are not the mark of the model that was asked."""
    refused: Counter[str] = field(default_factory=Counter[str])
    without_retry_after: int = 0

    def count(self, ware: Ware, answer: Answer) -> None:
        if answer.status == 200 and answer.whole:
            self.answered += 1
            self.tokens += answer.tokens
            self.unmarked += not answer.text.startswith(ware.mark)
            return
        self.refused[str(answer.status) if answer.status != 200 else "broken"] += 1
        self.without_retry_after += answer.retry_after is None


@asynccontextmanager
async def flooding(
    client: aiohttp.ClientSession, url: str, wares: Sequence[Ware], clients: int
) -> AsyncIterator[Flood]:
    """So many clients ask for these models in turn, each again as soon as it is answered, until the block ends."""
    flood = Flood()

    async def one(number: int) -> None:
        turn = number
        while True:
            ware = wares[turn % len(wares)]
            turn += clients
            answer = await ask(client, Server(url, ware.key), ware.model, TOKENS)
            flood.count(ware, answer)
            if answer.status != 200:
                await asyncio.sleep(answer.retry_after or 1.0)

    tasks = [asyncio.create_task(one(number)) for number in range(clients)]
    try:
        await asyncio.sleep(SETTLE_SECONDS)
        yield flood
        broken = [task.exception() for task in tasks if task.done()]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if broken:
        raise RuntimeError(f"{len(broken)} clients of a flood broke off") from broken[0]


@dataclass(frozen=True)
class Alone:
    """What a tenant's requests to one adapter take when nobody else asks."""

    first_token: float
    load: float
    """What the first token of a cold adapter takes longer."""

    def waited(self, answer: Answer) -> float:
        """Seconds to the first token beyond what it takes alone, beyond a load, and beyond the engine's steps."""
        load = 0.0 if answer.tier in ("gpu", "cpu") else self.load
        return answer.first_token - self.first_token - load - STEPS * answer.step


async def _alone(client: aiohttp.ClientSession, server: Server, shop: Shop, ware: Ware) -> Alone:
    cold: list[float] = []
    for _ in range(ALONE):
        if not await shop.evict(ware.adapter):
            raise RuntimeError("an adapter could not be evicted")
        cold.append((await ask(client, server, ware.model, TOKENS)).first_token)
    warm = statistics.median([(await ask(client, server, ware.model, TOKENS)).first_token for _ in range(ALONE)])
    return Alone(warm, max(0.0, statistics.median(cold) - warm))


async def newcomer(
    client: aiohttp.ClientSession, url: str, shop: Shop, crowd: Sequence[Ware], ware: Ware, seconds: int
) -> Figures:
    """Another tenant's one request a second to one adapter, beside a flood that has every slot it can get."""
    answers: list[Answer] = []
    alone = await _alone(client, Server(url, ware.key), shop, ware)
    if not await shop.evict(ware.adapter):
        raise RuntimeError("an adapter could not be evicted")

    async def ask_one() -> None:
        answers.append(await ask(client, Server(url, ware.key), ware.model, TOKENS))

    async with flooding(client, url, crowd, FLOOD) as flood, asyncio.TaskGroup() as group:
        for _ in range(seconds):
            group.create_task(ask_one())
            await asyncio.sleep(1.0)
    good = [each for each in answers if each.status == 200 and each.whole and each.text.startswith(ware.mark)]
    waits = [each.waited for each in good if each.waited is not None]
    return {
        "requests": len(answers),
        "failed": len(answers) - len(good),
        "told_wait_p50_ms": round(percentile(waits, 0.5), 1),
        "told_wait_p99_ms": round(percentile(waits, 0.99), 1),
        "alone_first_token_ms": milliseconds([alone.first_token]),
        "own_load_ms": milliseconds([alone.load]),
        "first_token_p50_ms": milliseconds([each.first_token for each in good]),
        "first_token_p99_ms": milliseconds([each.first_token for each in good], 0.99),
        "step_p50_ms": milliseconds([each.step for each in good]),
        "seen_wait_p50_ms": milliseconds([alone.waited(each) for each in good]),
        "seen_wait_p99_ms": milliseconds([alone.waited(each) for each in good], 0.99),
        "tiers": Counter(each.tier for each in good),
        "flood": _told(flood, len(crowd), FLOOD),
    }


async def alike(client: aiohttp.ClientSession, url: str, crowds: Sequence[Sequence[Ware]], seconds: int) -> Figures:
    """Tokens of two tenants that flood a replica in the same way."""
    async with flooding(client, url, crowds[0], ALIKE) as one, flooding(client, url, crowds[1], ALIKE) as other:
        before, began = (one.tokens, other.tokens), time.perf_counter()
        await asyncio.sleep(seconds)
        tokens = (one.tokens - before[0], other.tokens - before[1])
        took = time.perf_counter() - began
    mean = sum(tokens) / 2
    return {
        "tokens": tokens,
        "tokens_per_second": round(sum(tokens) / took, 1),
        "apart": round(max(abs(each - mean) for each in tokens) / mean, 3),
        "floods": [_told(each, len(crowd), ALIKE) for each, crowd in zip((one, other), crowds, strict=True)],
    }


def _told(flood: Flood, adapters: int, clients: int) -> Figures:
    return {
        "clients": clients,
        "adapters": adapters,
        "answered": flood.answered,
        "wrong_answers": flood.unmarked,
        "refused": dict(flood.refused),
        "refused_without_retry_after": flood.without_retry_after,
    }
