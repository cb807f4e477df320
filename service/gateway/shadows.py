"""Copies of requests for the version that shadows an alias: asked after the real one, and nobody sees the answers.

A copy is worth less than any request. Few are asked at once, and none while the process or the replicas have much to
do; what finds no place is dropped. Their tokens are booked apart, of no key, and count against no limit.
"""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime

from service.contracts.ids import ProjectId
from service.errors import ApiError
from service.gateway.exchange import Answered
from service.gateway.request import CompletionRequest
from service.gateway.resolve import Shadow, Target
from service.usage.ledger import UsageEntry
from service.usage.spool import Spool

MOST_SECONDS = 120.0
"""Longer than that, a copy would keep its place from others."""
CROWDED_SECONDS = 0.05
"""A replica whose requests wait for so long has more to do than it can do at once."""
REST_SECONDS = 2.0

log = logging.getLogger("service.gateway")


Ask = Callable[[str, ProjectId, CompletionRequest, Target], Awaitable[Answered]]


class Shadows:
    """One process's. `most` at once, half of them of one project; `busy` says whether there is too much else to do."""

    def __init__(self, ask: Ask, spool: Spool, most: int, busy: Callable[[], bool]) -> None:
        self._ask = ask
        self._spool = spool
        self._most = most
        self._busy = busy
        self._tasks: set[asyncio.Task[None]] = set()
        self._projects: Counter[ProjectId] = Counter()
        self._rests_until = 0.0

    def offer(self, path: str, project: ProjectId, request: CompletionRequest, shadow: Shadow) -> None:
        """Asks by chance, later, and never raises. For requests that are on their way themselves."""
        if random.random() >= shadow.fraction or not self._has_room(project):
            return
        self._projects[project] += 1
        task = asyncio.create_task(self._asked(path, project, request, shadow.target))
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._over(done, project))

    async def close(self) -> None:
        """Ends those under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _has_room(self, project: ProjectId) -> bool:
        full = len(self._tasks) >= self._most or self._projects[project] >= max(1, self._most // 2)
        return not (full or self._busy() or time.monotonic() < self._rests_until) and self._spool.accepting

    async def _asked(self, path: str, project: ProjectId, request: CompletionRequest, target: Target) -> None:
        # Nobody reads it as it comes.
        fields = {name: value for name, value in request.fields.items() if name not in ("stream", "stream_interval")}
        copy = replace(request, fields=fields, stream=False)
        try:
            async with asyncio.timeout(MOST_SECONDS):
                answered = await self._ask(path, project, copy, target)
        except ApiError as problem:
            log.info("a copy for %s was not answered: %s", target.name, problem)
            return
        except TimeoutError:
            log.info("a copy for %s took too long", target.name)
            return
        if answered.waited >= CROWDED_SECONDS:
            self._rests_until = time.monotonic() + REST_SECONDS
        self._spool.append(_entry(project, target, answered))

    def _over(self, task: asyncio.Task[None], project: ProjectId) -> None:
        self._tasks.discard(task)
        self._projects[project] -= 1
        if not self._projects[project]:
            del self._projects[project]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a copy of a request failed", exc_info=error)


def _entry(project: ProjectId, target: Target, answered: Answered) -> UsageEntry:
    return UsageEntry(
        id=answered.request_id,
        project_id=project,
        kind="completion",
        model=target.name,
        base_model=target.base,
        shadow=True,
        prompt_tokens=answered.usage.prompt_tokens,
        completion_tokens=answered.usage.completion_tokens,
        created_at=datetime.now(UTC),
    )
