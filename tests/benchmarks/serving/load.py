"""Chat requests as a client makes them, timed: one streamed request, and a closed loop of many."""

import asyncio
import re
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

CONTENT = re.compile(rb'"content":"((?:[^"\\]|\\.)+)"')
COUNT = re.compile(rb'"completion_tokens":(\d+)')
PROMPT = "Please ship order 4821 for Mira Kato to Lund."
TIMEOUT = aiohttp.ClientTimeout(total=120)


@dataclass(frozen=True)
class Server:
    """Where requests go: through the whole of Weft, or to a naked vLLM."""

    url: str
    key: str = ""


@dataclass(frozen=True)
class Answer:
    status: int
    first_token: float
    """Seconds from the request to the first token of content."""
    tokens: int
    tier: str | None
    text: str
    whole: bool
    """Whether the stream ended as it should."""
    waited: float | None = None
    """Milliseconds for the request's turn at its replica."""
    retry_after: float | None = None
    """Seconds after which a refused client is asked to come again."""
    model: str = ""


def session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=TIMEOUT)


async def ask(client: aiohttp.ClientSession, server: Server, model: str, tokens: int, **fields: Any) -> Answer:
    """One streamed greedy request of exactly so many tokens, unless `fields` say otherwise."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    } | fields
    headers = {"authorization": f"Bearer {server.key}"}
    began, first, received = time.perf_counter(), 0.0, b""
    async with client.post(f"{server.url}/v1/chat/completions", json=body, headers=headers) as answer:
        async for chunk in answer.content.iter_any():
            received += chunk
            # The first event says who speaks, the next one is the first token, which may be half a character.
            if not first and received.count(b"data: ") > 1:
                first = time.perf_counter() - began
        came = answer.headers
    counts = COUNT.findall(received)
    text = b"".join(CONTENT.findall(received)).decode(errors="replace")
    whole = received.endswith(b"data: [DONE]\n\n")
    tokens = int(counts[-1]) if counts else 0
    tier, waited = came.get("x-adapter-cache"), _number(came.get("x-weft-wait-ms"))
    return Answer(answer.status, first, tokens, tier, text, whole, waited, _number(came.get("retry-after")), model)


def _number(value: str | None) -> float | None:
    return None if value is None else float(value)


@dataclass(frozen=True)
class Run:
    """What a closed loop gave."""

    answers: list[Answer]
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return sum(answer.tokens for answer in self.answers) / self.seconds

    def first_tokens(self, tier: str | None = None) -> list[float]:
        return [each.first_token for each in self.answers if tier is None or each.tier == tier]


async def closed_loop(
    client: aiohttp.ClientSession, server: Server, models: Iterable[str], at_once: int, tokens: int
) -> Run:
    """`at_once` clients take the next of `models` as soon as they are answered. Raises where an answer is not whole."""
    answers: list[Answer] = []

    async def worker(queue: Iterator[str]) -> None:
        for model in queue:
            answer = await ask(client, server, model, tokens)
            if answer.status != 200 or not answer.whole:
                raise RuntimeError(f"{model}: {answer}")
            answers.append(answer)

    shared = iter(list(models))
    began = time.perf_counter()
    await asyncio.gather(*(worker(shared) for _ in range(at_once)))
    return Run(answers, time.perf_counter() - began)


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def milliseconds(values: Sequence[float], share: float = 0.5) -> float | None:
    if not values:
        return None
    return round(1000 * (statistics.median(values) if share == 0.5 else percentile(values, share)), 1)
