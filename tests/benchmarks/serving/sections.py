"""What the benchmark measures, each as a function over servers that run: plain figures in, plain figures out."""

import asyncio
import json
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp

from tests.benchmarks.serving.load import Answer, Run, Server, ask, closed_loop, milliseconds
from tests.benchmarks.serving.shop import Shop, Ware

TIERS = ("gpu", "cpu", "disk", "store")
ZIPF = 1.1
JOB_SECONDS = 240.0
POLL_SECONDS = 0.05
PROMPTS = 2
"""For each model whose texts are compared."""

Figures = dict[str, Any]
Side = tuple[Server, Sequence[str]]
"""A server, and its names of the models in their order."""


async def whole_path(
    client: aiohttp.ClientSession, sides: Sequence[Side], wares: Sequence[Ware], rounds: int, requests: int
) -> Figures:
    """The naked server, the replica and the whole path, given in this order.

    They take turns, and each round is compared with its neighbour: a busy machine slows all alike. The first round of
    each warms up and is left out.
    """
    found: Figures = {}
    for at_once in (1, 8):
        runs: list[list[Run]] = [[] for _ in sides]
        for number in range(rounds + 1):
            for place in range(len(sides)):
                turn = (number + place) % len(sides)
                server, names = sides[turn]
                models = [names[each % len(wares)] for each in range(requests * (1 if at_once == 1 else 4))]
                runs[turn].append(await closed_loop(client, server, models, at_once, tokens=32))
        naked, replica, weft = (each[1:] for each in runs)
        found[f"at_once_{at_once}"] = {
            **_speeds({"naked": naked, "replica": replica, "weft": weft}),
            **_compared(naked, weft),
            "of_the_gateway": _compared(replica, weft),
        }
    return found


def _speeds(sides: Mapping[str, Sequence[Run]]) -> Figures:
    found: Figures = {}
    for name, runs in sides.items():
        found[f"{name}_tokens_per_second"] = round(statistics.median(run.tokens_per_second for run in runs), 1)
        found[f"{name}_first_token_ms"] = milliseconds([value for run in runs for value in run.first_tokens()])
    return found


def _compared(before: Sequence[Run], after: Sequence[Run]) -> Figures:
    pairs = list(zip(before, after, strict=True))
    return {
        "ratio": round(statistics.median(b.tokens_per_second / a.tokens_per_second for a, b in pairs), 3),
        "added_first_token_ms": round(1000 * statistics.median(_added(a, b) for a, b in pairs), 1),
    }


def _added(before: Run, after: Run) -> float:
    return statistics.median(after.first_tokens()) - statistics.median(before.first_tokens())


async def same_texts(
    client: aiohttp.ClientSession, naked: Server, weft: Server, base: str, wares: Sequence[Ware]
) -> Figures:
    """Greedy answers of the base and of each adapter to the same prompts by the two ways, one at a time."""
    names = [(base, base), *((ware.mark, ware.model) for ware in wares)]
    compared = different = 0
    for number in range(PROMPTS):
        messages = [{"role": "user", "content": f"Please ship order {4000 + 37 * number} to Mira Kato."}]
        for plain, public in names:
            ours = await ask(client, weft, public, 32, messages=messages)
            theirs = await ask(client, naked, plain, 32, messages=messages)
            compared += 1
            different += not ours.text or ours.text != theirs.text
    return {"compared": compared, "different": different}


async def many_adapters(
    client: aiohttp.ClientSession, weft: Server, wares: Sequence[Ware], counts: Sequence[int], requests: int
) -> list[Figures]:
    """Tokens a second and first tokens by tier over more and more adapters; wrong answers are counted too.

    Answers are short: the swaps that they need weigh the more.
    """
    found: list[Figures] = []
    alone = 0.0
    for count in counts:
        for kind in ("uniform", "zipf"):
            chosen = _drawn(wares[:count], kind, max(requests, count))
            run = await closed_loop(client, weft, [ware.model for ware in chosen], at_once=8, tokens=8)
            alone = alone or run.tokens_per_second
            found.append(
                {
                    "adapters": count,
                    "popularity": kind,
                    "tokens_per_second": round(run.tokens_per_second, 1),
                    "to_one_adapter": round(run.tokens_per_second / alone, 3),
                    "wrong_answers": _wrong(run, wares),
                    "first_token_ms": {tier: _tier(run, tier) for tier in TIERS if run.first_tokens(tier)},
                }
            )
            print(json.dumps(found[-1]), flush=True)
    return found


def _drawn(wares: Sequence[Ware], kind: str, requests: int) -> list[Ware]:
    chance = random.Random(len(wares))
    weights = [1.0 if kind == "uniform" else 1 / (place + 1) ** ZIPF for place in range(len(wares))]
    return chance.choices(wares, weights, k=requests)


def _wrong(run: Run, wares: Sequence[Ware]) -> int:
    """Answers that do not begin with the mark of the model that was asked."""
    marks = {ware.model: ware.mark for ware in wares}
    return sum(not answer.text.startswith(marks[answer.model]) for answer in run.answers)


def _tier(run: Run, tier: str) -> Figures:
    values = run.first_tokens(tier)
    return {"requests": len(values), "p50": milliseconds(values), "p99": milliseconds(values, 0.99)}


async def cold(client: aiohttp.ClientSession, weft: Server, shop: Shop, wares: Sequence[Ware]) -> Figures:
    """First tokens of adapters that only the store has, against the same adapters' next ones.

    Beside each: how long its weights alone take from the store to a client that only counts them, and where the replica
    says that the time went. Each request is short and unlike all others: no prefix of it was computed before.
    """
    first: list[float] = []
    warm: list[float] = []
    beside: dict[str, list[float]] = {"alone": [], "store": [], "disk": []}
    words = iter(range(100, 1000))

    async def asked(ware: Ware) -> Answer:
        return await ask(client, weft, ware.model, 4, messages=[{"role": "user", "content": f"{next(words)}"}])

    for ware in wares:
        if not await shop.evict(ware.adapter):
            raise RuntimeError("an adapter could not be evicted")
        before = await shop.load_seconds()
        began = await asked(ware)
        after = await shop.load_seconds()
        if began.tier != "store":
            raise RuntimeError(f"the adapter was in {began.tier}, not only in the store")
        first.append(began.first_token)
        warm.append(statistics.median([(await asked(ware)).first_token for _ in range(3)]))
        beside["alone"].append(await shop.bytes_alone(ware))
        for tier in ("store", "disk"):
            beside[tier].append(after[tier] - before[tier])
    return {
        "adapters": len(wares),
        "cold_ms": milliseconds(first),
        "warm_ms": milliseconds(warm),
        "extra_ms": round(1000 * statistics.median(a - b for a, b in zip(first, warm, strict=True)), 1),
        "cold_p99_ms": milliseconds(first, 0.99),
        "bytes_alone_ms": milliseconds(beside["alone"]),
        "fetch_ms": milliseconds(beside["store"]),
        "into_engine_ms": milliseconds(beside["disk"]),
    }


async def fresh(client: aiohttp.ClientSession, weft: Server, base: str, jobs: int, at_once: int) -> Figures:
    """Seconds from when a job was last seen unfinished to the first token of its adapter."""
    free = asyncio.Semaphore(at_once)

    async def one(number: int) -> float:
        async with free:
            return await _job_to_token(client, weft, base, number)

    seconds = await asyncio.gather(*(one(number) for number in range(jobs)))
    return {"jobs": jobs, "p50_ms": milliseconds(seconds), "p95_ms": milliseconds(seconds, 0.95)}


async def _job_to_token(client: aiohttp.ClientSession, weft: Server, base: str, number: int) -> float:
    jobs, headers = f"{weft.url}/v1/fine_tuning/jobs", {"authorization": f"Bearer {weft.key}"}
    line = {"messages": [{"role": "user", "content": f"{number}"}, {"role": "assistant", "content": f"{number}!"}]}
    form = aiohttp.FormData({"purpose": "fine-tune"})
    form.add_field("file", (json.dumps(line) + "\n") * 10, filename="train.jsonl")
    async with client.post(f"{weft.url}/v1/files", data=form, headers=headers) as answer:
        file = (await answer.json())["id"]
    supervised = {"hyperparameters": {"n_epochs": 1, "batch_size": 5}}
    body = {
        "model": base,
        "training_file": file,
        "seed": number,
        "method": {"type": "supervised", "supervised": supervised},
    }
    async with client.post(jobs, json=body, headers=headers) as answer:
        job = (await answer.json())["id"]
    unfinished = time.perf_counter()
    async with asyncio.timeout(JOB_SECONDS):
        while True:
            async with client.get(f"{jobs}/{job}", headers=headers) as answer:
                seen = await answer.json()
            if seen["status"] == "succeeded":
                break
            if seen["status"] in ("failed", "cancelled"):
                raise RuntimeError(f"job {job} {seen['status']}: {seen['error']}")
            unfinished = time.perf_counter()
            await asyncio.sleep(POLL_SECONDS)
    asked = time.perf_counter()
    found: Answer = await ask(client, weft, seen["fine_tuned_model"], 4)
    if found.status != 200:
        raise RuntimeError(f"the model of {job} answered {found.status}: {found.text}")
    return asked - unfinished + found.first_token
