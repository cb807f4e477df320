"""Serving, measured from outside in one run: `make bench-serving`. The last line is JSON. Fails below the targets.

Real parts on one machine: the whole embedded stack and a naked vLLM beside it, over the tiny base; then a stack over a
wider base for adapters of a realistic size. Clients share the machine's cores with both sides alike.
"""

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from deploy.local import tiny_base
from tests.benchmarks.serving import fairness, sections, wide
from tests.benchmarks.serving.canaries import CanaryMaker
from tests.benchmarks.serving.load import Server, session
from tests.benchmarks.serving.marks import MarkMaker
from tests.benchmarks.serving.naked import naked_vllm
from tests.benchmarks.serving.sections import Figures
from tests.benchmarks.serving.shop import Shop, Ware
from tests.benchmarks.serving.verdicts import judged
from tests.e2e.stack import Stack

SLOTS, KNOWN, ON_DISK = 8, 32, 100
COUNTS = (1, 8, 32, 128, 200)
CROWD, OTHERS = 50, 25
"""Adapters of the tenant that floods, and of the other one."""


@asynccontextmanager
async def stack_of(folder: Path, *options: str, **variables: str) -> AsyncIterator[Stack]:
    """Running and ready until the block ends."""
    made = Stack(folder, *options, **variables)
    try:
        await asyncio.to_thread(made.start)
        yield made
    finally:
        if made.process is not None and made.process.poll() is None:
            await asyncio.to_thread(made.stop)


@dataclass(frozen=True)
class Small:
    """A stack over the tiny base, with small adapters of two tenants on sale in it."""

    options: argparse.Namespace
    folder: Path
    shop: Shop
    client: aiohttp.ClientSession
    weft: Server
    made: list[tuple[str, dict[str, bytes]]]
    wares: list[Ware]
    others: list[Ware]

    async def path(self) -> Figures:
        preloaded = dict(self.made[:SLOTS])
        folder = self.folder / "naked"
        folder.mkdir()
        wares, base = self.wares[:SLOTS], self.shop.base
        async with naked_vllm(folder, base, preloaded, SLOTS) as naked:
            rounds, requests = self.options.rounds, self.options.requests
            sides = [
                (naked, [ware.mark for ware in wares]),
                (await self._replica(), [ware.adapter for ware in wares]),
                (self.weft, [ware.model for ware in wares]),
            ]
            speed = await sections.whole_path(self.client, sides, wares, rounds, requests)
            return speed | {"texts": await sections.same_texts(self.client, naked, self.weft, base.name, wares)}

    async def _replica(self) -> Server:
        """As the gateway asks it."""
        found = (await self.shop.replicas())[0]
        return Server(found["url"], found["api_key"])

    async def adapters(self) -> list[Figures]:
        counts = [count for count in COUNTS if count <= len(self.wares)]
        return await sections.many_adapters(self.client, self.weft, self.wares, counts, self.options.cell)

    async def cold(self) -> Figures:
        return await sections.cold(self.client, self.weft, self.shop, self.wares[: self.options.cold])

    async def fresh(self) -> Figures:
        return await sections.fresh(self.client, self.weft, self.shop.base.name, self.options.jobs, at_once=4)

    async def newcomer(self) -> Figures:
        crowd = self.wares[:CROWD]
        seconds = self.options.seconds
        return await fairness.newcomer(self.client, self.weft.url, self.shop, crowd, self.others[0], seconds)

    async def alike(self) -> Figures:
        crowds = (self.wares[:OTHERS], self.others)
        return await fairness.alike(self.client, self.weft.url, crowds, self.options.seconds)


SECTIONS = ("path", "adapters", "cold", "fresh", "newcomer", "alike")
LARGE = "cold_large"


async def small_adapters(folder: Path, options: argparse.Namespace) -> Figures:
    maker = await asyncio.to_thread(MarkMaker, tiny_base.MODEL_DIR)
    made = [(mark, maker.make(mark, seed).files) for seed, mark in enumerate(maker.marks(options.adapters + OTHERS))]
    canary_maker = await asyncio.to_thread(CanaryMaker, tiny_base.MODEL_DIR)
    canaries = {mark: canary_maker.make(files) for mark, files in made}
    size = sum(len(content) for content in made[0][1].values())
    variables = {
        "WEFT_REPLICA_MAX_LORAS": str(SLOTS),
        "WEFT_REPLICA_MAX_CPU_LORAS": str(KNOWN),
        "WEFT_REPLICA_CACHE_BYTES": str(ON_DISK * size),
    }
    async with stack_of(folder, **variables) as stack, Shop(stack.data) as shop, session() as client:
        stalls = [
            await shop.stall(stack.url, await asyncio.to_thread(stack.project, name)) for name in ("bench", "other")
        ]
        wares = await shop.put_all_on_sale(stalls[:1], made[: options.adapters], canaries)
        others = await shop.put_all_on_sale(stalls[1:], made[options.adapters :], canaries)
        weft = Server(stack.url, stalls[0].key)
        small = Small(options, folder, shop, client, weft, made, wares, others)
        return {name: await told(name, getattr(small, name)) for name in SECTIONS if name in options.sections}


async def large_adapters(folder: Path, options: argparse.Namespace) -> Figures:
    base = await asyncio.to_thread(wide.write_base, folder / "wide")
    made = [(str(seed), wide.adapter(seed)) for seed in range(options.large)]
    # Without canaries: their rank is larger than any that the training engine has slots for.
    megabytes = sum(len(content) for content in made[0][1].values()) / 1e6
    variables = {"WEFT_REPLICA_MAX_LORA_RANK": str(wide.RANK), "WEFT_REPLICA_MAX_CPU_LORAS": str(2 * SLOTS)}
    async with (
        stack_of(folder, "--base", str(base), **variables) as stack,
        Shop(stack.data, str(base)) as shop,
        session() as client,
    ):
        key = await asyncio.to_thread(stack.project, "bench")
        stall = await shop.stall(stack.url, key)
        wares = await shop.put_all_on_sale([stall], made, {})
        cold = await sections.cold(client, Server(stack.url, key), shop, wares)
        return {"megabytes": round(megabytes, 1), **cold}


async def told(name: str, section: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """What a section found, printed as soon as it is known."""
    began = time.monotonic()
    found = await section()
    print(json.dumps({name: found, "seconds": round(time.monotonic() - began, 1)}), flush=True)
    return found


async def measured(options: argparse.Namespace) -> Figures:
    # Not in a folder of pytest's: as root PostgreSQL runs as another user, which must get there.
    root = Path(tempfile.mkdtemp(prefix="weft-bench-serving-"))
    found: Figures = {}
    try:
        for name in ("small", "large"):
            (root / name).mkdir()
        if set(SECTIONS) & set(options.sections):
            found |= await small_adapters(root / "small", options)
        if LARGE in options.sections:
            found[LARGE] = await told(LARGE, lambda: large_adapters(root / "large", options))
    except BaseException:
        print(f"what the processes said is kept in {root}", flush=True)
        raise
    shutil.rmtree(root, ignore_errors=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sections", nargs="+", choices=[*SECTIONS, LARGE], default=[*SECTIONS, LARGE])
    parser.add_argument("--adapters", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7, help="of the naked server and the whole path in turn")
    parser.add_argument("--requests", type=int, default=8, help="in a round of one client; others follow from it")
    parser.add_argument("--cell", type=int, default=1000, help="requests for each number of adapters and popularity")
    parser.add_argument("--cold", type=int, default=30, help="small adapters measured cold")
    parser.add_argument("--large", type=int, default=8, help="large adapters measured cold")
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--seconds", type=int, default=120, help="of each flood")
    found = asyncio.run(measured(parser.parse_args()))
    figures = judged(found)
    for name, figure in figures.items():
        if figure["met"] is False:
            print(f"missed: {name} is {figure['value']}, asked {figure['asked']}")
    met = all(figure["met"] is not False for figure in figures.values())
    print(json.dumps({"met": met, "figures": figures, "measured": found}))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
