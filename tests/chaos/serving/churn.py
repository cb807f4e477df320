"""Evictions, deletions and replacements at random, and a look at the disks, beside the traffic.

What goes wrong here is a failure like any other, to be explained by a kill or not at all.
"""

import asyncio
import contextlib
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import asyncpg

from service.contracts.store import StoreError
from tests.benchmarks.serving.canaries import CanaryMaker
from tests.benchmarks.serving.marks import MarkMaker
from tests.benchmarks.serving.shop import Stall, Ware
from tests.chaos.serving.fleet import PARTS
from tests.chaos.serving.kills import Ground
from tests.chaos.serving.traffic import Request

EVICT_SECONDS, DELETE_SECONDS, LOOK_SECONDS, AGAIN_SECONDS = 1.0, 4.0, 1.0, 0.2
UNREACHED = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError)
FAILURES = (*UNREACHED, TimeoutError, aiohttp.ClientError, StoreError)
"""What a part that was killed looks like to those who need it."""


class Churn:
    def __init__(self, ground: Ground, marks: MarkMaker, canaries: CanaryMaker, stalls: Sequence[Stall]) -> None:
        self._ground, self._market = ground, ground.market
        self._marks, self._canaries, self._stalls = marks, canaries, stalls
        self._chance = random.Random(7)
        self._new_marks = (word for word in marks.marks(5000) if word not in self._market.marks)
        self.failures: list[Request] = []
        self.evictions = self.refused_evictions = self.deletions = self.most_on_disk = 0

    async def evict(self, over: asyncio.Event) -> None:
        """One adapter after the other that a replica holds, wherever it holds it."""
        while not over.is_set():
            await asyncio.sleep(EVICT_SECONDS)
            replica = self._chance.choice([*PARTS])
            status = await self._ground.fleet.status(replica)
            if status is None or not status.adapters:
                continue
            adapter = self._chance.choice(sorted(status.adapters))
            with contextlib.suppress(*UNREACHED):
                done = await self._ground.shop.evict(adapter, replica)
                self.evictions += done
                self.refused_evictions += not done

    async def replace(self, over: asyncio.Event) -> None:
        """One model off the shelf and a new one on, the new one first."""
        for number, mark in enumerate(self._new_marks):
            await asyncio.sleep(DELETE_SECONDS)
            if over.is_set():
                return
            files = (await asyncio.to_thread(self._marks.make, mark, number)).files
            canary = await asyncio.to_thread(self._canaries.make, files)
            stall = self._chance.choice(self._stalls)
            began = time.monotonic()
            try:
                self._market.add(await self._ground.shop.put_on_sale(stall, mark, files, canary))
            except FAILURES as error:
                self._failed("put on sale", began, f"{type(error).__name__}: {error}")
                continue
            ware = self._chance.choice(self._market.wares[:-1])
            self._market.take_off(ware)
            await self._delete(ware, over)

    async def _delete(self, ware: Ware, over: asyncio.Event) -> None:
        """Until it is done: a failed attempt may have done it or not."""
        url = f"{self._ground.stack.url}/v1/models/{ware.model}"
        headers = {"authorization": f"Bearer {ware.key}"}
        again = False
        while not over.is_set():
            began = time.monotonic()
            try:
                async with self._ground.client.delete(url, headers=headers) as answer:
                    status = answer.status
            except FAILURES as error:
                status = 0
                self._failed("delete", began, f"{type(error).__name__}: {error}")
            if status == 200 or (again and status == 404):
                self._market.deleted[ware.model] = time.monotonic()
                self.deletions += 1
                return
            if status:
                self._failed("delete", began, f"status {status}")
            again = True
            await asyncio.sleep(AGAIN_SECONDS)

    def _failed(self, what: str, began: float, problem: str) -> None:
        self.failures.append(Request(what, began, time.monotonic(), f"{what}: {problem}"))

    async def watch_disks(self, over: asyncio.Event) -> None:
        while not over.is_set():
            for name in ("adapters", "adapters-2"):
                folder = self._ground.stack.data.root / name / "adapters"
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
