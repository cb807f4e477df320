"""Asking the models: the lines of one batch, a few at a time, recorded every few seconds."""

import asyncio
import logging
import time
from collections.abc import Collection
from dataclasses import dataclass, field

import orjson

from service.batches.holding import Holding, State
from service.batches.lines import Line, Result, answered, lines_of, refused
from service.batches.throttle import Throttle
from service.contracts.ids import FileId
from service.contracts.layout import file_key
from service.errors import ApiError, InvalidRequest, RateLimited, Unavailable
from service.gateway.request import CompletionRequest
from service.gateway.resolve import Target
from service.gateway.routes import PARSERS, Gateway
from service.limits.spend import require_budget
from service.resources import Resources

RECORD_SECONDS = 2.0
RECORD_BYTES = 4 << 20
"""Answers in memory; no more than this and those in progress are ever lost with a process."""
BUDGET_SECONDS = 15.0
SLICE_SECONDS = 300.0
"""After so long others that wait have their turn."""
ATTEMPTS = 5
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 30.0
PASSING = frozenset({"no_replica", "no_capacity", "adapter_loading", "adapter_storage_unavailable", "overloaded"})
"""What says nothing about the request. It is asked again until the batch's window ends."""

log = logging.getLogger("service.batches")


@dataclass(frozen=True)
class Asked:
    """`whole` is False where lines are left; `spent` where the project's budget is."""

    state: State
    whole: bool
    spent: bool


@dataclass
class Asking:
    resources: Resources
    gateway: Gateway
    throttle: Throttle
    holding: Holding
    _results: list[Result] = field(default_factory=list[Result])
    _size: int = 0
    _left: bool = False
    _full: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, done: Collection[int]) -> Asked:
        """Asks all lines but those that are `done`, for as long as this batch's turn lasts. Raises Lost."""
        state, spent, checked = await self.holding.record(()), await self._spent(), time.monotonic()
        if spent:
            return Asked(state, whole=False, spent=True)
        lines = asyncio.create_task(self._lines(done, time.monotonic() + SLICE_SECONDS))
        try:
            while state.status == "in_progress" and not state.over and not lines.done():
                if time.monotonic() - checked >= BUDGET_SECONDS:
                    checked, spent = time.monotonic(), await self._spent()
                    if spent:
                        break
                await self._pause(lines)
                state = await self._record()
            whole = lines.done() and lines.result()
        finally:
            lines.cancel()
            await asyncio.wait({lines})
        return Asked(await self._record(), whole, spent)

    async def _lines(self, done: Collection[int], end: float) -> bool:
        """Whether all lines were answered before `end`, on the monotonic clock."""
        room = asyncio.Semaphore(self.resources.settings.max_batch_requests)
        key = file_key(self.holding.project, FileId(self.holding.batch.input_file_id))

        async def ask(line: Line) -> None:
            try:
                await self._result(line, end)
            finally:
                room.release()

        try:
            async with asyncio.TaskGroup() as group:
                async for line in lines_of(self.resources.store, key, done):
                    await room.acquire()
                    if time.monotonic() > end:
                        return False
                    group.create_task(ask(line))
        except ExceptionGroup as several:
            raise several.exceptions[0] from several
        return not self._left

    async def _result(self, line: Line, end: float) -> None:
        failures, pause = 0, FIRST_PAUSE
        while True:
            try:
                return self._keep(await self._answer(line))
            except (Unavailable, RateLimited) as problem:
                failures += problem.code not in PASSING and not isinstance(problem, RateLimited)
                if failures >= ATTEMPTS:
                    return self._keep(refused(line, problem))
            except ApiError as problem:
                return self._keep(refused(line, problem))
            if time.monotonic() > end:
                self._left = True
                return None
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _answer(self, line: Line) -> Result:
        raw = orjson.dumps(line.body)
        request = _request(line, raw)
        target: Target = await self.gateway.resolver.target(self.holding.project, request.model, raw)
        async with self.throttle.turn(self.holding.project):
            got = await self.gateway.answer(line.url, self.holding.project, request, target)
        self.throttle.saw(got.waited)
        return answered(line, got, target)

    def _keep(self, result: Result) -> None:
        self._results.append(result)
        self._size += len(result.text)
        if self._size >= RECORD_BYTES:
            self._full.set()

    async def _pause(self, lines: "asyncio.Task[bool]") -> None:
        """Until the lines are through, there is much to record, or it is time to."""
        full = asyncio.create_task(self._full.wait())
        await asyncio.wait({lines, full}, timeout=RECORD_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        full.cancel()

    async def _record(self) -> State:
        results, self._results, self._size = self._results, [], 0
        self._full.clear()
        return await self.holding.record(results)

    async def _spent(self) -> bool:
        try:
            async with self.resources.database.tenant(self.holding.project) as session:
                await require_budget(session, self.resources.settings)
        except RateLimited as spent:
            log.info("batch %s waits: %s", self.holding.batch.id, spent)
            return True
        return False


def _request(line: Line, raw: bytes) -> CompletionRequest:
    request = PARSERS[line.url](raw)
    if request.stream:
        raise InvalidRequest("Requests of a batch cannot be streamed; leave 'stream' out.", param="stream")
    return request
