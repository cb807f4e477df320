"""Bringing adapters to the replica that will be asked for them, so that their first request finds them loaded.

New models, versions that an alias was given to lately and those whose owner asked for it, once each; pinned versions
again and again, so that nothing else takes their place. All of it is a hint: every gateway may give it, a replica may
refuse it, and a request never waits for it.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

import aiohttp
from sqlalchemy import ColumnElement, Executable, func, select, text

from service.adapters import aliases
from service.adapters.models import AdapterRow, AliasRow, ModelRow, RegisteredRow, VersionRow
from service.contracts.replica import AdapterRef
from service.db import DatabaseUnavailable
from service.errors import Unavailable
from service.gateway.place import Placement
from service.replicas.membership import Replica
from service.resources import Resources

ENSURE = "/v1/weft/adapters/ensure"
RECENT_SECONDS = 60
"""What changed so lately is looked at; a transaction that was slow to commit is still seen."""
AGAIN_SECONDS = 5.0
"""An adapter that aliases go to and fro over is not asked for each time."""
PIN_SECONDS = 10.0
AT_ONCE = 4
MOST = 16
"""The newest of them: a thousand models that come at once are not all asked for next, and would push out those in use.
"""
MOST_PINNED = 1000
TIMEOUT = aiohttp.ClientTimeout(total=60)

Wanted = tuple[str, str]
"""An adapter and its base."""

log = logging.getLogger("service.gateway")

BASE: Any = AdapterRow.manifest["base_model"].astext
LIVE = (
    VersionRow.deleted_at.is_(None),
    AdapterRow.deleted_at.is_(None),
    VersionRow.registered_id.in_(select(RegisteredRow.id).where(RegisteredRow.deleted_at.is_(None))),
)


class Warmer:
    """Needs `run` beside it; `wake` says that models or aliases have changed."""

    def __init__(self, resources: Resources) -> None:
        self._database = resources.database
        self._changed = asyncio.Event()
        self._seen: dict[tuple[str, datetime], None] = {}
        self._hinted: dict[str, float] = {}

    def wake(self) -> None:
        self._changed.set()

    async def run(self, session: aiohttp.ClientSession, placement: Placement) -> None:
        """Warms until cancelled."""
        free = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as hints:
            hints.create_task(self._keep_pinned(session, placement))
            while True:
                await self._changed.wait()
                self._changed.clear()
                for adapter, base in await self._news():
                    hints.create_task(_warmed(session, placement, free, adapter, base))

    async def _news(self) -> list[Wanted]:
        """Adapters that came into use and were not seen before, newest first."""
        rows = await self._rows(_published(), _given(), _asked_for())
        found: list[tuple[str, str, datetime]] = [(str(adapter), str(base), since) for adapter, base, since in rows]
        news: dict[str, str] = {}
        now = time.monotonic()
        for adapter, base, since in sorted(found, key=lambda each: each[2], reverse=True):
            if (adapter, since) not in self._seen and now - self._hinted.get(adapter, -AGAIN_SECONDS) >= AGAIN_SECONDS:
                news[adapter] = base
        # Only what is recent is found again.
        self._seen = {(adapter, since): None for adapter, _, since in found}
        self._hinted = {key: at for key, at in self._hinted.items() if now - at < AGAIN_SECONDS}
        chosen = list(news.items())[:MOST]
        self._hinted.update((adapter, now) for adapter, _ in chosen)
        return chosen

    async def _keep_pinned(self, session: aiohttp.ClientSession, placement: Placement) -> None:
        query = select(VersionRow.artifact_id, BASE).join(AdapterRow, AdapterRow.id == VersionRow.artifact_id)
        query = query.where(VersionRow.pinned, *LIVE).group_by(VersionRow.artifact_id, BASE)
        query = query.order_by(func.min(VersionRow.created_at)).limit(MOST_PINNED)
        while True:
            await asyncio.sleep(PIN_SECONDS)
            places: Counter[str] = Counter()
            for adapter, base in await self._rows(query):
                with suppress(Unavailable):
                    replica = placement.choose(base, adapter)
                    places[replica.id] += 1
                    # More than it has slots would only push each other out; the oldest keep their places.
                    if places[replica.id] <= replica.max_loras:
                        await _ensured(session, replica, adapter)

    async def _rows(self, *queries: Executable) -> Sequence[Any]:
        try:
            async with self._database.control() as session:
                return [row for query in queries for row in (await session.execute(query)).all()]
        except DatabaseUnavailable:
            return ()


def _recent(moment: Any) -> ColumnElement[bool]:
    return moment > func.now() - text(f"interval '{RECENT_SECONDS} seconds'")


def _published() -> Executable:
    """Final models."""
    return (
        select(AdapterRow.id, BASE, ModelRow.created_at)
        .join(ModelRow, ModelRow.adapter_id == AdapterRow.id)
        .where(ModelRow.kind == "final", ModelRow.deleted_at.is_(None), _recent(ModelRow.created_at))
        .order_by(ModelRow.created_at.desc())
        .limit(MOST)
    )


def _given() -> Executable:
    """Versions that aliases lead to, also with a share of the traffic or as a shadow."""
    return (
        select(AdapterRow.id, BASE, AliasRow.updated_at)
        .join(VersionRow, VersionRow.artifact_id == AdapterRow.id)
        .join(AliasRow, AliasRow.registered_id == VersionRow.registered_id)
        .where(aliases.names(VersionRow.number), _recent(AliasRow.updated_at), *LIVE)
        .order_by(AliasRow.updated_at.desc())
        .limit(MOST)
    )


def _asked_for() -> Executable:
    return (
        select(AdapterRow.id, BASE, VersionRow.warm_requested_at)
        .join(VersionRow, VersionRow.artifact_id == AdapterRow.id)
        .where(_recent(VersionRow.warm_requested_at), *LIVE)
        .order_by(VersionRow.warm_requested_at.desc())
        .limit(MOST)
    )


async def _warmed(
    session: aiohttp.ClientSession, placement: Placement, free: asyncio.Semaphore, adapter: str, base: str
) -> None:
    async with free:
        try:
            replica = placement.choose(base, adapter)
        except Unavailable as error:
            log.info("%s was not warmed: %s", adapter, error)
            return
        await _ensured(session, replica, adapter)


async def _ensured(session: aiohttp.ClientSession, replica: Replica, adapter: str) -> None:
    headers = {"Authorization": f"Bearer {replica.api_key}"}
    body = AdapterRef(adapter_id=adapter).model_dump()
    try:
        async with session.post(replica.url + ENSURE, json=body, headers=headers, timeout=TIMEOUT) as answer:
            if answer.status != 200:
                log.info("replica %s did not warm %s: status %d", replica.id, adapter, answer.status)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        log.info("%s was not warmed: %s", adapter, error)
