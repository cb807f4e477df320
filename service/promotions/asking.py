"""One request of an evaluation to a model: at low priority, greedy, and repeated while nothing could be answered."""

import asyncio
from dataclasses import dataclass
from typing import Any, cast

import orjson

from service.contracts.ids import ProjectId
from service.errors import ApiError, InvalidRequest, RateLimited, Unavailable
from service.gateway.resolve import Target
from service.gateway.routes import PARSERS, Gateway
from service.promotions.examples import CHAT, Example, text_of
from service.usage.ledger import UsageEntry

ATTEMPTS = 4
PAUSE = 1.0
PASSING = frozenset({"no_replica", "no_capacity", "adapter_loading", "adapter_storage_unavailable", "overloaded"})
"""What says nothing about the request: the evaluation waits and goes on later."""
MOST_TOKENS = 1024
MARGIN_TOKENS = 64
"""An answer may be so much longer than twice the example's own before it is cut off."""

Body = dict[str, Any]


class NotNow(Exception):
    """Nothing can be answered at present."""


@dataclass(frozen=True, slots=True)
class Told:
    """A model's answer and its entry in the ledger."""

    body: Body
    entry: UsageEntry

    @property
    def text(self) -> str:
        choice: Body = self.body["choices"][0]
        return cast("str", choice["text"]) if "text" in choice else text_of(choice["message"])

    @property
    def prompt_tokens(self) -> int:
        return self.entry.prompt_tokens


@dataclass(frozen=True, slots=True)
class Asker:
    gateway: Gateway
    project: ProjectId
    key_id: str | None

    async def answer(self, target: Target, example: Example) -> Told:
        """What a model says to an example. Raises InvalidRequest where it cannot be asked that."""
        # A token has a byte at least.
        limit = min(MOST_TOKENS, 2 * len(example.reference.encode()) + MARGIN_TOKENS)
        body = {**example.asked, "temperature": 0, "max_tokens": limit}
        try:
            return await self.ask(target, example.path, body)
        except InvalidRequest:
            # Where so many tokens do not fit beside the prompt. Without a limit an answer ends where the context does.
            shorter = {} if example.path == CHAT else {"max_tokens": max(1, len(example.reference.encode()))}
            return await self.ask(target, example.path, {**example.asked, "temperature": 0, **shorter})

    async def ask(self, target: Target, path: str, body: Body) -> Told:
        """Raises NotNow, InvalidRequest for this request alone, and any other ApiError where asking on is no use."""
        request = PARSERS[path](orjson.dumps({**body, "model": target.name}))
        for attempt in range(1, ATTEMPTS + 1):
            try:
                got = await self.gateway.answer(path, self.project, request, target)
            except (Unavailable, RateLimited) as problem:
                if attempt == ATTEMPTS:
                    raise _given_up(problem) from problem
                await asyncio.sleep(PAUSE * attempt)
            else:
                return Told(orjson.loads(got.body), self._entry(got.request_id, target, got.usage))
        raise AssertionError("unreachable")

    def _entry(self, request_id: str, target: Target, usage: Any) -> UsageEntry:
        return UsageEntry(
            id=request_id,
            project_id=self.project,
            kind="completion",
            model=target.name,
            base_model=target.base,
            key_id=self.key_id,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
        )


def _given_up(problem: ApiError) -> Exception:
    if problem.code in PASSING or isinstance(problem, RateLimited):
        return NotNow(problem.message)
    return problem
