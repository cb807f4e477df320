"""Churn and kills under traffic: `make chaos-serving`. The last line is JSON. Fails where anything is amiss.

Hundreds of marked models over two replicas with few slots and a small disk, while models are evicted, deleted and
replaced at random and each process of the stack is killed once with `kill -9`. Told apart from right answers: wrong
ones, failures at other times than those of a kill, engines that died without being killed, disks over their budget.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg

from deploy.local import tiny_base
from tests.benchmarks.serving.__main__ import stack_of
from tests.benchmarks.serving.canaries import CanaryMaker
from tests.benchmarks.serving.load import session
from tests.benchmarks.serving.marks import MarkMaker
from tests.benchmarks.serving.shop import Shop, Stall
from tests.chaos.serving.kills import Kill, Killer
from tests.chaos.serving.traffic import Market, Request, Traffic
from tests.e2e.stack import Stack

SLOTS, KNOWN, ON_DISK = 8, 16, 40
TENANTS, CLIENTS = 4, 8
REPLICAS = ("local", "local-2")
EVICT_SECONDS, DELETE_SECONDS, LOOK_SECONDS = 1.0, 4.0, 1.0
OVERHEAD_SHARE = 0.05
"""Of the budget: manifests, and what is being replaced."""


Makers = tuple[MarkMaker, CanaryMaker]


class Churn:
    """Evicts, deletes and replaces models and looks at the disks, beside the traffic."""

    def __init__(self, stack: Stack, shop: Shop, market: Market, makers: Makers, stalls: list[Stall]) -> None:
        self._stack, self._shop, self._market, self._stalls = stack, shop, market, stalls
        self._maker, self._canaries = makers
        self._chance = random.Random(7)
        self._new_marks = iter(self._maker.marks(5000))
        self.evictions = self.deletions = self.most_on_disk = 0

    async def evict(self, until: float) -> None:
        while time.monotonic() < until:
            await asyncio.sleep(EVICT_SECONDS)
            ware = self._chance.choice(self._market.wares)
            try:
                self.evictions += await self._shop.evict(ware.adapter, self._chance.choice(REPLICAS))
            except (OSError, asyncpg.PostgresError):
                continue  # The database is being killed; it is asked again in a second.

    async def delete(self, client: aiohttp.ClientSession, until: float) -> None:
        """One model off the shelf and a new one on, the new one first."""
        known = {ware.mark for ware in self._market.wares}
        while time.monotonic() < until:
            await asyncio.sleep(DELETE_SECONDS)
            mark = next(word for word in self._new_marks if word not in known)
            try:
                files = (await asyncio.to_thread(self._maker.make, mark, self.deletions)).files
                canary = await asyncio.to_thread(self._canaries.make, files)
                fresh = await self._shop.put_on_sale(self._chance.choice(self._stalls), mark, files, canary)
                self._market.wares.append(fresh)
                await self._delete_one(client)
            except Exception as error:
                # The database, the store or the service is being killed.
                print(f"no replacement: {type(error).__name__}", flush=True)

    async def _delete_one(self, client: aiohttp.ClientSession) -> None:
        ware = self._chance.choice(self._market.wares[:-1])
        self._market.deleted[ware.model] = float("inf")
        self._market.wares.remove(ware)
        url, headers = f"{self._stack.url}/v1/models/{ware.model}", {"authorization": f"Bearer {ware.key}"}
        async with client.delete(url, headers=headers) as answer:
            if answer.status == 200:
                self._market.deleted[ware.model] = time.monotonic()
                self.deletions += 1

    async def watch_disks(self, until: float) -> None:
        while time.monotonic() < until:
            for name in ("adapters", "adapters-2"):
                folder = self._stack.data.root / name / "adapters"
                self.most_on_disk = max(self.most_on_disk, await asyncio.to_thread(_size, folder))
            await asyncio.sleep(LOOK_SECONDS)


def _size(folder: Path) -> int:
    """What is evicted meanwhile counts or does not."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += (Path(place) / name).stat().st_size
    return total


def judged(requests: list[Request], kills: list[Kill]) -> dict[str, Any]:
    """Every failure belongs to a kill that explains it, or to nothing."""
    failed = [request for request in requests if request.problem]
    stray = [each for each in failed if not any(kill.explains(each) for kill in kills)]
    for each in stray[:20]:
        print(f"stray: {each.ware.model} {each.problem}", flush=True)
    return {
        "requests": len(requests),
        "wrong_answers": sum(each.wrong for each in failed),
        "failures_of_kills": len(failed) - len(stray),
        "stray_failures": len(stray),
        "kills": [kill.told(requests) for kill in kills],
    }


async def churned(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    makers = MarkMaker(tiny_base.MODEL_DIR), CanaryMaker(tiny_base.MODEL_DIR)
    maker, canary_maker = makers
    marks = maker.marks(options.adapters)
    made = [(mark, maker.make(mark, seed).files) for seed, mark in enumerate(marks)]
    canaries = {mark: canary_maker.make(files) for mark, files in made}
    budget = ON_DISK * sum(len(content) for content in made[0][1].values())
    variables = {
        "WEFT_REPLICA_MAX_LORAS": str(SLOTS),
        "WEFT_REPLICA_MAX_CPU_LORAS": str(KNOWN),
        "WEFT_REPLICA_CACHE_BYTES": str(budget),
    }
    async with (
        stack_of(folder, "--replicas", str(len(REPLICAS)), **variables) as stack,
        Shop(stack.data) as shop,
        session() as client,
    ):
        keys = [await asyncio.to_thread(stack.project, f"tenant-{number}") for number in range(TENANTS)]
        stalls = [await shop.stall(stack.url, key) for key in keys]
        market = Market(await shop.put_all_on_sale(stalls, made, canaries))
        traffic, killer = Traffic(stack.url, market), Killer(stack)
        churn = Churn(stack, shop, market, makers, stalls)
        until = time.monotonic() + options.seconds
        await asyncio.gather(
            *(traffic.client(client, seed, until) for seed in range(CLIENTS)),
            churn.evict(until),
            churn.delete(client, until),
            churn.watch_disks(until),
            killer.run(until, options.kills),
        )
        unexpected = killer.unexpected_starts()
        return judged(traffic.requests, killer.kills) | {
            "tiers": traffic.tiers,
            "evictions": churn.evictions,
            "deletions": churn.deletions,
            "disk_to_budget": round(churn.most_on_disk / budget, 3),
            "engine_deaths_not_caused": unexpected,
        }


def problems_of(found: dict[str, Any]) -> list[str]:
    problems = [f"{found[name]} {name}" for name in ("wrong_answers", "stray_failures") if found[name]]
    problems += [f"{found['engine_deaths_not_caused']} engine deaths"] if found["engine_deaths_not_caused"] else []
    if found["disk_to_budget"] > 1 + OVERHEAD_SHARE:
        problems.append(f"{found['disk_to_budget']} of the disk budget")
    problems += [f"{kill['victim']}: {kill['problem']}" for kill in found["kills"] if kill["problem"]]
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--adapters", type=int, default=200)
    parser.add_argument("--kills", type=int, default=8, help="how many of the processes, in a fixed order")
    options = parser.parse_args()
    # Not in a folder of pytest's: as root PostgreSQL runs as another user, which must get there.
    root = Path(tempfile.mkdtemp(prefix="weft-chaos-"))
    try:
        found = asyncio.run(churned(root, options))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    problems = problems_of(found)
    for problem in problems:
        print(f"missed: {problem}")
    print(json.dumps({"met": not problems, "seconds": options.seconds, "adapters": options.adapters, **found}))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
