"""Tenants who chat with their marked models and the base without pause, and what each request came to.

Some stream, some take their answer whole, some leave in the middle. Every answer must be its own model's mark, and the
base's nobody's. What else may happen depends on when: while a kill is being mended a request may fail, a model that was
deleted is gone a second later, and at all other times there is nothing but right answers.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from deploy.local.tiny_base.tasks import examples
from tests.benchmarks.serving.load import Answer, Server, ask
from tests.benchmarks.serving.shop import Ware

SEEN_SECONDS = 1.0
"""A deletion is known everywhere after so long."""
TOKENS = 8
LONG_TOKENS = 200
"""Of an answer whose client leaves: more than it waits for."""
PROMPTS = [line["messages"][:-1] for line in examples("support-desk", 40, seed=11)]
MANNERS = {"streamed": 5, "whole": 3, "left": 2}
"""How a client takes its answer, and how often so."""
AGAIN_SECONDS = 0.05
BASE_SHARE, GONE_SHARE = 0.1, 0.05


@dataclass(frozen=True)
class Request:
    """One request and its end. `problem` is empty where all was well."""

    model: str
    began: float
    ended: float
    problem: str
    wrong: bool = False


@dataclass
class Market:
    """What is on sale beside the base, and when something was taken off."""

    wares: list[Ware]
    base: str = ""
    deleted: dict[str, float] = field(default_factory=dict)
    """When a model's deletion was answered; infinity while it is under way."""
    gone: list[Ware] = field(default_factory=list)
    """What was taken off."""
    marks: set[str] = field(default_factory=set)
    """Of all that was ever on sale."""

    def __post_init__(self) -> None:
        self.marks |= {ware.mark for ware in self.wares}

    def add(self, ware: Ware) -> None:
        self.wares.append(ware)
        self.marks.add(ware.mark)

    def take_off(self, ware: Ware) -> None:
        """Its deletion begins."""
        self.deleted[ware.model] = float("inf")
        self.wares.remove(ware)
        self.gone.append(ware)

    def plain(self, like: Ware) -> Ware:
        """The base as one tenant asks for it."""
        return Ware(like.project, like.key, self.base, self.base, "")

    def may_be_gone(self, ware: Ware) -> bool:
        return ware.model in self.deleted

    def must_be_gone(self, ware: Ware, at: float) -> bool:
        return at > self.deleted.get(ware.model, float("inf")) + SEEN_SECONDS


class Traffic:
    def __init__(self, url: str, market: Market) -> None:
        self._url = url
        self._market = market
        self.requests: list[Request] = []
        self.tiers: Counter[str] = Counter()
        self.manners: Counter[str] = Counter()

    async def client(self, session: aiohttp.ClientSession, seed: int, over: asyncio.Event) -> None:
        """Asks one model after the other until all is over, mostly those that are asked for often."""
        chance = random.Random(seed)
        while not over.is_set():
            manner = chance.choices([*MANNERS], [*MANNERS.values()])[0]
            request = await self.ask(session, self._chosen(chance), manner, chance.choice(PROMPTS))
            if request.problem:
                await asyncio.sleep(AGAIN_SECONDS)

    async def ask(
        self,
        session: aiohttp.ClientSession,
        ware: Ware,
        manner: str = "streamed",
        messages: Sequence[dict[str, str]] = PROMPTS[0],
    ) -> Request:
        began = time.monotonic()
        name = manner if ware.mark else f"{manner}, of the base"
        try:
            answer = await self._answer(session, ware, manner, messages)
            problem, wrong = self._judged(ware, answer, manner, began), self._is_wrong(ware, answer, manner)
            self.tiers[str(answer.tier)] += 1
        except (aiohttp.ClientError, TimeoutError) as error:
            problem, wrong = f"{type(error).__name__}: {error}", False
        request = Request(ware.model, began, time.monotonic(), f"{name}: {problem}" if problem else "", wrong)
        self.manners[name] += 1
        self.requests.append(request)
        return request

    async def _answer(
        self, session: aiohttp.ClientSession, ware: Ware, manner: str, messages: Sequence[dict[str, str]]
    ) -> Answer:
        options: dict[str, Any] = {"ignore_eos": False, "messages": messages}
        tokens = TOKENS
        if manner == "whole":
            options |= {"stream": False}
        elif manner == "left":
            tokens = LONG_TOKENS
            options |= {"ignore_eos": True, "leave_after": len(ware.mark) or 1}
        return await ask(session, Server(self._url, ware.key), ware.model, tokens, **options)

    def _judged(self, ware: Ware, answer: Answer, manner: str, began: float) -> str:
        """What is wrong with an answer, in words; nothing where all is well."""
        if answer.status == 404 and self._market.may_be_gone(ware):
            return ""
        if answer.status != 200:
            return f"status {answer.status}"
        if self._market.must_be_gone(ware, began):
            return "a deleted model answered"
        if not answer.whole:
            return "the answer broke off"
        return f"said {answer.text!r} instead of {ware.mark!r}" if self._is_wrong(ware, answer, manner) else ""

    def _is_wrong(self, ware: Ware, answer: Answer, manner: str) -> bool:
        """Whether a whole answer is not its model's. One that is left goes on after the mark."""
        if answer.status != 200 or not answer.whole:
            return False
        if not ware.mark:
            return not answer.text or answer.text in self._market.marks
        return (answer.text[: len(ware.mark)] if manner == "left" else answer.text) != ware.mark

    def _chosen(self, chance: random.Random) -> Ware:
        wares = self._market.wares
        if self._market.gone and chance.random() < GONE_SHARE:
            return chance.choice(self._market.gone[-20:])
        if chance.random() < BASE_SHARE:
            return self._market.plain(chance.choice(wares))
        place = min(int(chance.paretovariate(0.5)) - 1, len(wares) - 1)
        return wares[place] if chance.random() < 0.5 else chance.choice(wares)
