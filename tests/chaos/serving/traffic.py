"""Tenants who chat with their marked models without pause, and what each request came to.

Every answer must be its own model's mark. What else may happen depends on when: while a kill is being mended a request
may fail, a model that was deleted is gone a second later, and at all other times there is nothing but right answers.
"""

import asyncio
import random
import time
from dataclasses import dataclass, field

import aiohttp

from tests.benchmarks.serving.load import Answer, Server, ask
from tests.benchmarks.serving.shop import Ware

SEEN_SECONDS = 1.0
"""A deletion is known everywhere after so long."""
TOKENS = 8


@dataclass(frozen=True)
class Request:
    """One request and its end. `problem` is empty where all was well."""

    ware: Ware
    began: float
    ended: float
    problem: str
    wrong: bool = False
    told: str = ""
    """For a reader: the problem, or where the adapter was found and how many seconds its first token took."""


@dataclass
class Market:
    """What is on sale, and when something was taken off."""

    wares: list[Ware]
    deleted: dict[str, float] = field(default_factory=dict)
    """When a model's deletion was answered; infinity while it is under way."""

    def may_be_gone(self, ware: Ware) -> bool:
        return ware.model in self.deleted

    def must_be_gone(self, ware: Ware, at: float) -> bool:
        return at > self.deleted.get(ware.model, float("inf")) + SEEN_SECONDS


class Traffic:
    def __init__(self, url: str, market: Market) -> None:
        self._url = url
        self._market = market
        self.requests: list[Request] = []
        self.tiers: dict[str, int] = {}

    async def client(self, session: aiohttp.ClientSession, seed: int, until: float) -> None:
        """Asks one model after the other until the time has come, mostly those that are asked for often."""
        chance = random.Random(seed)
        while time.monotonic() < until:
            wares = self._market.wares
            place = min(int(chance.paretovariate(0.5)) - 1, len(wares) - 1)
            ware = wares[place] if chance.random() < 0.5 else chance.choice(wares)
            if self._market.deleted and chance.random() < 0.05:
                ware = await self._ask_for_a_deleted_one(session, chance) or ware
            await self.ask(session, ware)

    async def ask(self, session: aiohttp.ClientSession, ware: Ware) -> Request:
        began = time.monotonic()
        server = Server(self._url, ware.key)
        try:
            answer = await ask(session, server, ware.model, TOKENS, ignore_eos=False)
            problem = self._judged(ware, answer, began)
            wrong = answer.status == 200 and answer.whole and bool(problem)
            self.tiers[str(answer.tier)] = self.tiers.get(str(answer.tier), 0) + 1
            told = problem or f"{answer.tier}, {answer.first_token:.2f} s"
        except (aiohttp.ClientError, TimeoutError) as error:
            problem, wrong = f"{type(error).__name__}: {error}", False
            told = problem
        request = Request(ware, began, time.monotonic(), problem, wrong, told)
        self.requests.append(request)
        return request

    def _judged(self, ware: Ware, answer: Answer, began: float) -> str:
        """What is wrong with an answer, in words; nothing where all is well."""
        if answer.status == 404 and self._market.may_be_gone(ware):
            return ""
        if answer.status != 200:
            return f"status {answer.status}"
        if self._market.must_be_gone(ware, began):
            return "a deleted model answered"
        if not answer.whole:
            return "the stream broke off"
        return "" if answer.text == ware.mark else f"said {answer.text!r} instead of {ware.mark!r}"

    async def _ask_for_a_deleted_one(self, session: aiohttp.ClientSession, chance: random.Random) -> Ware | None:
        gone = [request.ware for request in self.requests[-200:] if self._market.may_be_gone(request.ware)]
        await asyncio.sleep(0)
        return chance.choice(gone) if gone else None
