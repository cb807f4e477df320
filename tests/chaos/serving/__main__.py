"""Churn and kills under traffic: `make chaos-serving`. The last line is JSON. Fails where anything is amiss.

Hundreds of marked models over two replicas with few slots and a small disk, while models are evicted, deleted and
replaced at random and each process of the stack is killed once with `kill -9`. After each kill every model is asked
until it answers. Told apart from right answers: wrong ones, failures at other times than those of a kill, engines that
died without being killed, disks over their budget, turns that nobody gave back.
"""

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from deploy.local import tiny_base
from tests.benchmarks.serving.__main__ import stack_of
from tests.benchmarks.serving.canaries import CanaryMaker
from tests.benchmarks.serving.load import session
from tests.benchmarks.serving.marks import MarkMaker
from tests.benchmarks.serving.shop import Shop
from tests.chaos.serving.churn import Churn
from tests.chaos.serving.fleet import PARTS, Fleet, Lives
from tests.chaos.serving.judging import judged, problems_of
from tests.chaos.serving.kills import VICTIMS, Ground, Killer
from tests.chaos.serving.traffic import Market, Traffic

SLOTS, KNOWN, ON_DISK = 8, 16, 40
TENANTS, CLIENTS = 4, 8
END_SECONDS = 10.0
"""Until replicas have ended the last answers and carried out the last deletions."""


@asynccontextmanager
async def open_market(folder: Path, adapters: int) -> AsyncIterator[tuple[Ground, Churn, int]]:
    """A stack with that many models of several tenants on sale; and a replica's disk budget."""
    marks, canaries = MarkMaker(tiny_base.MODEL_DIR), CanaryMaker(tiny_base.MODEL_DIR)
    made = [(mark, marks.make(mark, seed).files) for seed, mark in enumerate(marks.marks(adapters))]
    proofs = {mark: canaries.make(files) for mark, files in made}
    budget = ON_DISK * sum(len(content) for content in made[0][1].values())
    variables = {
        "WEFT_REPLICA_MAX_LORAS": str(SLOTS),
        "WEFT_REPLICA_MAX_CPU_LORAS": str(KNOWN),
        "WEFT_REPLICA_CACHE_BYTES": str(budget),
    }
    async with (
        stack_of(folder, "--replicas", str(len(PARTS)), **variables) as stack,
        Shop(stack.data) as shop,
        session() as client,
    ):
        keys = [await asyncio.to_thread(stack.project, f"tenant-{number}") for number in range(TENANTS)]
        stalls = [await shop.stall(stack.url, key) for key in keys]
        market = Market(await shop.put_all_on_sale(stalls, made, proofs), shop.base.name)
        ground = Ground(stack, shop, client, Fleet(shop, client), market, Traffic(stack.url, market))
        yield ground, Churn(ground, marks, canaries, stalls), budget


async def churned(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    async with open_market(folder, options.adapters) as (ground, churn, budget):
        killer, lives, over = Killer(ground), Lives(ground.stack), asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for seed in range(CLIENTS):
                group.create_task(ground.traffic.client(ground.client, seed, over))
            for work in (churn.evict, churn.replace, churn.watch_disks, lives.watch):
                group.create_task(work(over))
            await asyncio.gather(asyncio.sleep(options.seconds), killer.run(options.seconds, VICTIMS[: options.kills]))
            over.set()
        deaths = {part: lives.deaths(part) - _killed(killer, part) for part in PARTS.values()}
        gone = {ware.adapter for ware in ground.market.gone}
        found = judged([*ground.traffic.requests, *churn.failures], killer.kills)
        return found | {
            "tiers": ground.traffic.tiers,
            "manners": ground.traffic.manners,
            "evictions": churn.evictions,
            "refused_evictions": churn.refused_evictions,
            "deletions": churn.deletions,
            "disk_to_budget": round(churn.most_on_disk / budget, 3),
            "engine_deaths_not_caused": sum(deaths.values()),
            "turns_not_given_back": int(not await ground.fleet.until_idle(END_SECONDS)),
            "deleted_but_held": int(not await ground.fleet.until_without(gone, END_SECONDS)),
        }


def _killed(killer: Killer, part: str) -> int:
    return sum(kill.victim.starts and kill.victim.part == part for kill in killer.kills)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--adapters", type=int, default=200)
    parser.add_argument("--kills", type=int, default=len(VICTIMS), help="how many of the processes, in a fixed order")
    options = parser.parse_args()
    # Not in a folder of pytest's: as root PostgreSQL runs as another user, which must get there.
    root = Path(tempfile.mkdtemp(prefix="weft-chaos-"))
    try:
        found = asyncio.run(churned(root, options))
    except BaseException:
        print(f"what the processes said is kept in {root}", flush=True)
        raise
    problems = problems_of(found, options.seconds, min(options.kills, len(VICTIMS)))
    for problem in problems:
        print(f"missed: {problem}")
    if not problems:
        shutil.rmtree(root, ignore_errors=True)
    else:
        print(f"what the processes said is kept in {root}")
    print(json.dumps({"met": not problems, "seconds": options.seconds, "adapters": options.adapters, **found}))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
