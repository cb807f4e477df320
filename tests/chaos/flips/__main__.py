"""Flips of an alias under traffic: `make chaos-flips`. The last line is JSON. Fails where anything is amiss.

Two gateways on one database answer 50 requests a second of `support-bot@prod`, half of them streams, while that alias
goes round its versions, flipped through either gateway. Every answer must be one version's from end to end, none may
fail, all must be in the ledger, and soon after a flip is acknowledged no request may begin on an old version.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

from tests.benchmarks.serving.load import session
from tests.chaos.flips.grounds import parts, stand_in, vllm
from tests.chaos.flips.judging import problems_of, told
from tests.chaos.flips.traffic import Ground, Traffic

BOOKED_SECONDS = 60


async def flipped(
    ground: Ground, client: aiohttp.ClientSession, flips: int, rate: float, pause: float
) -> dict[str, Any]:
    traffic = Traffic(ground, client)
    seconds = await traffic.run(flips, rate, pause)
    found = told(traffic.flips, traffic.asked, seconds)
    return {**found, "not_booked": await _not_booked(ground, dict(found["by_version"]))}


async def _not_booked(ground: Ground, answers: dict[int, int]) -> int:
    """Answers that the ledger lacks, or has too many of, once there was time to deliver them."""
    deadline = time.monotonic() + BOOKED_SECONDS
    booked = await ground.booked()
    while booked != answers and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
        booked = await ground.booked()
    return sum(abs(booked.get(version, 0) - answers.get(version, 0)) for version in booked | answers)


async def on_stand_in(options: argparse.Namespace, settings: Any) -> dict[str, Any]:
    async with session() as client, stand_in(settings, client, options.versions) as ground:
        return await flipped(ground, client, options.flips, options.rate, options.pause)


async def on_vllm(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="weft-flips-", ignore_cleanup_errors=True) as root:
        async with session() as client, vllm(Path(root), client, options.versions) as ground:
            return await flipped(ground, client, options.flips, options.rate, options.pause)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second")
    parser.add_argument("--pause", type=float, default=0.25, help="seconds between two flips, on average")
    parser.add_argument("--versions", type=int, default=8, help="that the alias goes round")
    parser.add_argument("--replica", choices=("stand-in", "vllm"), default="stand-in")
    options = parser.parse_args()
    began = time.monotonic()
    if options.replica == "vllm":
        found = asyncio.run(on_vllm(options))
    else:
        with parts() as settings:
            found = asyncio.run(on_stand_in(options, settings))
    problems = problems_of(found)
    for problem in problems:
        print(f"missed: {problem}")
    seconds = round(time.monotonic() - began)
    print(json.dumps({"met": not problems, "replica": options.replica, "seconds": seconds, **found}))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
