"""Requests and tokens per minute of each project, with OpenAI's headers. Asking costs microseconds and no SQL.

Each process has its own buckets and, while there is traffic, reconciles them with all the others' through one statement
every SHARE_SECONDS. So several gateways together stay at the limit, but for what they let through between two of those;
that is owed, and waited for. While the database is down each process keeps to the limit by itself.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import cast

from sqlalchemy import ARRAY, Double, Table, Text, bindparam, column, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.sql.dml import ReturningInsert

from service.contracts.ids import ProjectId
from service.db import Database, DatabaseUnavailable
from service.errors import ApiError, RateLimited
from service.limits.bucket import WINDOW, Bucket, shown
from service.limits.models import RateRow
from service.settings import ServiceSettings
from service.tenants.auth import Tenant

SHARE_SECONDS = 0.5

log = logging.getLogger("service.limits")

_used = (
    func.unnest(
        bindparam("projects", type_=ARRAY(Text)),
        bindparam("requests", type_=ARRAY(Double)),
        bindparam("tokens", type_=ARRAY(Double)),
    )
    .table_valued(column("project_id", Text), column("requests", Double), column("tokens", Double), name="used")
    .render_derived()
)
_now = func.extract("epoch", func.now()).cast(Double)
_rates = cast("Table", RateRow.__table__)
_new = insert(_rates).from_select(
    ["project_id", "requests_until", "tokens_until"],
    # Sorted, so that two processes never wait for each other's rows.
    select(_used.c.project_id, _now + _used.c.requests, _now + _used.c.tokens).order_by(_used.c.project_id),
)
SHARE: ReturningInsert[str, float, float] = _new.on_conflict_do_update(
    index_elements=["project_id"],
    set_={
        "requests_until": func.greatest(_rates.c.requests_until, _now) + _new.excluded.requests_until - _now,
        "tokens_until": func.greatest(_rates.c.tokens_until, _now) + _new.excluded.tokens_until - _now,
    },
).returning(_rates.c.project_id, _rates.c.requests_until - _now, _rates.c.tokens_until - _now)
"""Adds to what is owed, and gives the whole of it, in seconds from the transaction's time."""

Headers = list[tuple[bytes, bytes]]


@dataclass(slots=True)
class _Project:
    requests: Bucket
    tokens: Bucket
    asked: bool = False
    """Since the last exchange, also in vain: what others use is to be learned while this process refuses, too."""


class Admission:
    """One admitted request, as a context: what never settled in it has used no tokens, as where no replica answered.

    A refusal that leaves it tells the rates as an answer would.
    """

    __slots__ = ("_estimated", "_limit", "_now", "_project", "_settled", "headers")

    def __init__(
        self, project: _Project, limit: int, estimated: int, headers: Headers, now: Callable[[], float]
    ) -> None:
        self._project = project
        self._limit = limit
        self._estimated = estimated
        self._now = now
        self._settled = False
        self.headers = headers

    def __enter__(self) -> "Admission":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._settled:
            self.settle(0)
        if isinstance(error, ApiError):
            error.headers = {**{name.decode(): value.decode() for name, value in self.headers}, **error.headers}

    def settle(self, tokens: int) -> None:
        """Puts what was used in place of the estimate. May be repeated, as a stream goes on."""
        self._settled = True
        self._project.tokens.take(self._now(), self._limit, tokens - self._estimated)
        self._project.asked = True
        self._estimated = tokens


class Rates:
    """One process's rates. `admit` and `settle` are for the event loop's thread only."""

    def __init__(
        self, settings: ServiceSettings, database: Database, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._requests_per_minute = settings.max_requests_per_minute
        self._tokens_per_minute = settings.max_tokens_per_minute
        self._database = database
        self._now = now
        self._projects: dict[ProjectId, _Project] = {}

    def admit(self, tenant: Tenant, tokens: int) -> Admission:
        """Takes one request and `tokens`, an estimate. Raises RateLimited where the project has not that much left."""
        own = tenant.limits
        requests = self._requests_per_minute if own.requests_per_minute is None else own.requests_per_minute
        minute = self._tokens_per_minute if own.tokens_per_minute is None else own.tokens_per_minute
        project = self._projects.get(tenant.project_id)
        if project is None:
            project = self._projects[tenant.project_id] = _Project(Bucket(), Bucket())
        project.asked = True
        now = self._now()
        request_wait = project.requests.wait(now, requests, 1)
        token_wait = project.tokens.wait(now, minute, tokens)
        if request_wait or token_wait:
            raise _refusal(project, now, (requests, request_wait, 1), (minute, token_wait, tokens))
        project.requests.take(now, requests, 1)
        project.tokens.take(now, minute, tokens)
        return Admission(project, minute, tokens, _headers(project, now, requests, minute), self._now)

    async def run(self) -> None:
        """Shares until cancelled."""
        while True:
            await asyncio.sleep(SHARE_SECONDS)
            try:
                await self.share()
            except DatabaseUnavailable as error:
                log.warning("rates are kept by each process alone for now: %s", error)

    async def share(self) -> None:
        """Tells the database what was used here since the last time, and learns what was used everywhere."""
        asked = {name: project for name, project in self._projects.items() if project.asked}
        self._forget_full()
        if not asked:
            return
        taken = [(project.requests.take_unshared(), project.tokens.take_unshared()) for project in asked.values()]
        for project in asked.values():
            project.asked = False
        parameters = {
            "projects": list(asked),
            "requests": [requests for requests, _ in taken],
            "tokens": [tokens for _, tokens in taken],
        }
        try:
            async with self._database.control() as session:
                rows = (await session.execute(SHARE, parameters)).all()
        except BaseException:
            for project, (requests, tokens) in zip(asked.values(), taken, strict=True):
                project.requests.unshared += requests
                project.tokens.unshared += tokens
                project.asked = True
            raise
        now = self._now()
        for name, requests, tokens in rows:
            project = asked[ProjectId(name)]
            project.requests.adopt(now + requests)
            project.tokens.adopt(now + tokens)

    def _forget_full(self) -> None:
        now = self._now()
        for name, project in list(self._projects.items()):
            if not project.asked and max(project.requests.until, project.tokens.until) < now - WINDOW:
                del self._projects[name]


def _headers(project: _Project, now: float, requests: int, tokens: int) -> Headers:
    return [
        (b"x-ratelimit-limit-requests", b"%d" % requests),
        (b"x-ratelimit-limit-tokens", b"%d" % tokens),
        (b"x-ratelimit-remaining-requests", b"%d" % project.requests.left(now, requests)),
        (b"x-ratelimit-remaining-tokens", b"%d" % project.tokens.left(now, tokens)),
        (b"x-ratelimit-reset-requests", shown(project.requests.full_in(now)).encode()),
        (b"x-ratelimit-reset-tokens", shown(project.tokens.full_in(now)).encode()),
    ]


def _refusal(
    project: _Project, now: float, requests: tuple[int, float, int], tokens: tuple[int, float, int]
) -> RateLimited:
    """In OpenAI's words, of the rate that has to be waited for longest."""
    of_tokens = tokens[1] > requests[1]
    name, short, (limit, wait, amount) = ("tokens", "TPM", tokens) if of_tokens else ("requests", "RPM", requests)
    bucket = project.tokens if of_tokens else project.requests
    told = {key.decode(): value.decode() for key, value in _headers(project, now, requests[0], tokens[0])}
    begin = f"Rate limit reached for your project on {name} per min ({short}): Limit {limit}"
    if wait == float("inf"):
        return RateLimited(
            f"Request too large for your project on {name} per min ({short}): Limit {limit}, Requested {amount}. "
            "Ask for fewer tokens, or your administrator for a higher limit.",
            headers={**told, "x-should-retry": "false"},
        )
    used = limit - bucket.left(now, limit)
    message = f"{begin}, Used {used}, Requested {amount}. Please try again in {shown(wait)}."
    retry = {"Retry-After": str(max(1, -int(-wait // 1))), "retry-after-ms": str(max(1, -int(-wait * 1000 // 1)))}
    return RateLimited(message, headers={**told, **retry})
