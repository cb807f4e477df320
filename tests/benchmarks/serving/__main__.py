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
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from deploy.local import tiny_base
from tests.benchmarks.serving import sections, wide
from tests.benchmarks.serving.load import Server, session
from tests.benchmarks.serving.marks import MarkMaker
from tests.benchmarks.serving.naked import naked_vllm
from tests.benchmarks.serving.sections import Figures
from tests.benchmarks.serving.shop import Shop
from tests.e2e.stack import Stack

SLOTS, KNOWN, ON_DISK = 8, 32, 100
TARGETS = {
    "ratio": 0.95,
    "added_first_token_ms": 5.0,
    "cold_extra_ms": 40.0,
    "job_to_token_p95_ms": 1000.0,
}


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


async def small_adapters(folder: Path, options: argparse.Namespace) -> Figures:
    maker = await asyncio.to_thread(MarkMaker, tiny_base.MODEL_DIR)
    marks = maker.marks(options.adapters)
    made = [(mark, maker.make(mark, seed).files) for seed, mark in enumerate(marks)]
    size = sum(len(content) for content in made[0][1].values())
    variables = {
        "WEFT_REPLICA_MAX_LORAS": str(SLOTS),
        "WEFT_REPLICA_MAX_CPU_LORAS": str(KNOWN),
        "WEFT_REPLICA_CACHE_BYTES": str(ON_DISK * size),
    }
    async with stack_of(folder, **variables) as stack, Shop(stack.data) as shop, session() as client:
        key = await asyncio.to_thread(stack.project, "bench")
        weft = Server(stack.url, key)
        stall = await shop.stall(stack.url, key)
        wares = await shop.put_all_on_sale([stall], made)
        found: Figures = {}
        preloaded = dict(made[:SLOTS])
        (folder / "naked").mkdir()
        async with naked_vllm(folder / "naked", shop.base, preloaded, SLOTS) as naked:
            found["path"] = await sections.whole_path(
                client, naked, weft, wares[:SLOTS], options.rounds, options.requests
            )
            print(json.dumps(found["path"]), flush=True)
        counts = [count for count in (1, 8, 32, 128, 200) if count <= len(wares)]
        found["adapters"] = await sections.many_adapters(client, weft, wares, counts, 8 * options.requests)
        found["cold_small"] = await sections.cold(client, weft, shop, wares[: options.cold])
        found["fresh"] = await sections.fresh(client, weft, shop.base.name, options.jobs, at_once=4)
        return found


async def large_adapters(folder: Path, options: argparse.Namespace) -> Figures:
    base = await asyncio.to_thread(wide.write_base, folder / "wide")
    made = [(str(seed), wide.adapter(seed)) for seed in range(options.large)]
    megabytes = sum(len(content) for content in made[0][1].values()) / 1e6
    variables = {"WEFT_REPLICA_MAX_LORA_RANK": str(wide.RANK), "WEFT_REPLICA_MAX_CPU_LORAS": str(2 * SLOTS)}
    async with (
        stack_of(folder, "--base", str(base), **variables) as stack,
        Shop(stack.data, str(base)) as shop,
        session() as client,
    ):
        key = await asyncio.to_thread(stack.project, "bench")
        stall = await shop.stall(stack.url, key)
        wares = await shop.put_all_on_sale([stall], made)
        cold = await sections.cold(client, Server(stack.url, key), shop, wares)
        return {"megabytes": round(megabytes, 1), **cold}


def missed(found: Figures) -> list[str]:
    """Which targets were not met, in words."""
    problems = []
    for name, path in found["path"].items():
        if path["ratio"] < TARGETS["ratio"]:
            problems.append(f"{name}: {path['ratio']} of the naked server's tokens a second")
        if path["added_first_token_ms"] > TARGETS["added_first_token_ms"]:
            problems.append(f"{name}: {path['added_first_token_ms']} ms added to the first token")
    if found["cold_small"]["extra_ms"] > TARGETS["cold_extra_ms"]:
        problems.append(f"a cold adapter costs {found['cold_small']['extra_ms']} ms more")
    if found["fresh"]["p95_ms"] > TARGETS["job_to_token_p95_ms"]:
        problems.append(f"from job to token {found['fresh']['p95_ms']} ms at p95")
    return problems


async def measured(options: argparse.Namespace) -> Figures:
    # Not in a folder of pytest's: as root PostgreSQL runs as another user, which must get there.
    root = Path(tempfile.mkdtemp(prefix="weft-bench-"))
    try:
        for name in ("small", "large"):
            (root / name).mkdir()
        found = await small_adapters(root / "small", options)
        if options.large:
            found["cold_large"] = await large_adapters(root / "large", options)
        return found
    finally:
        shutil.rmtree(root, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5, help="of the naked server and the whole path in turn")
    parser.add_argument("--requests", type=int, default=16, help="in a round of one client; others follow from it")
    parser.add_argument("--cold", type=int, default=30, help="small adapters measured cold")
    parser.add_argument("--large", type=int, default=8, help="large adapters measured cold; 0 leaves them out")
    parser.add_argument("--jobs", type=int, default=20)
    found = asyncio.run(measured(parser.parse_args()))
    problems = missed(found)
    for problem in problems:
        print(f"missed: {problem}")
    print(json.dumps({"met": not problems, "targets": TARGETS, **found}))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
