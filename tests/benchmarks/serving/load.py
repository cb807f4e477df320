"""Chat requests as a client makes them, timed: one request, streamed unless it says otherwise, and a loop of many."""

import asyncio
import re
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
from multidict import CIMultiDictProxy

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
    """Seconds from the request to the first token of content; to the end where the answer is no stream."""
    tokens: int
    tier: str | None
    text: str
    whole: bool
    """Whether the answer ended as it should, or the client left before its end."""
    waited: float | None = None
    """Milliseconds for the request's turn at its replica."""
    retry_after: float | None = None
    """Seconds after which a refused client is asked to come again."""
    model: str = ""
    step: float = 0.0
    """Mean seconds from one token to the next."""


def session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=TIMEOUT)


async def ask(
    client: aiohttp.ClientSession, server: Server, model: str, tokens: int, *, leave_after: int = 0, **fields: Any
) -> Answer:
    """One greedy request of exactly so many tokens, unless `fields` say otherwise.

    With `leave_after` the client breaks a stream off once it has so many bytes of text.
    """
    body = {
        "model": model,
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    } | fields
    if body["stream"]:
        body["stream_options"] = {"include_usage": True}
    headers = {"authorization": f"Bearer {server.key}"}
    began, first, received, left = time.perf_counter(), 0.0, b"", False
    async with client.post(f"{server.url}/v1/chat/completions", json=body, headers=headers) as answer:
        async for chunk in answer.content.iter_any():
            received += chunk
            # The first event says who speaks, the next one is the first token, which may be half a character.
            if not first and received.count(b"data: ") > 1:
                first = time.perf_counter() - began
            left = 0 < leave_after <= len(_text(received))
            if left:
                answer.close()
                break
        came = answer.headers
    ended = received.endswith(b"data: [DONE]\n\n") if body["stream"] else received.endswith(b"}")
    seconds = time.perf_counter() - began
    return _answer(answer.status, came, received, (first or seconds, seconds), whole=left or ended, model=model)


def _answer(
    status: int, came: CIMultiDictProxy[str], received: bytes, times: tuple[float, float], *, whole: bool, model: str
) -> Answer:
    """`times` are those of the first token and of the end."""
    first, end = times
    counts = COUNT.findall(received)
    tokens = int(counts[-1]) if counts else 0
    return Answer(
        status=status,
        first_token=first,
        tokens=tokens,
        tier=came.get("x-adapter-cache"),
        text=_text(received).decode(errors="replace"),
        whole=whole,
        waited=_number(came.get("x-weft-wait-ms")),
        retry_after=_number(came.get("retry-after")),
        model=model,
        step=(end - first) / (tokens - 1) if tokens > 1 else 0.0,
    )


def _text(received: bytes) -> bytes:
    return b"".join(CONTENT.findall(received))


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
