"""Bringing a new model to the replica that will be asked for it, so that its first request finds it loaded.

A hint and nothing more: every gateway may give it, a replica may refuse it, and a request never waits for it.
"""

import asyncio
import logging
from collections import deque

import aiohttp
from sqlalchemy import func, select, text

from service.adapters.models import AdapterRow, ModelRow
from service.contracts.replica import AdapterRef
from service.db import DatabaseUnavailable
from service.errors import Unavailable
from service.gateway.place import Placement
from service.resources import Resources

ENSURE = "/v1/weft/adapters/ensure"
RECENT_SECONDS = 60
"""Models published so lately are looked at; one whose transaction was slow to commit is still seen."""
AT_ONCE = 4
MOST = 16
"""The newest of them: a thousand models that come at once are not all asked for next, and would push out those in use.
"""
TIMEOUT = aiohttp.ClientTimeout(total=60)

log = logging.getLogger("service.gateway")


class Warmer:
    """Needs `run` beside it; `wake` says that models have changed."""

    def __init__(self, resources: Resources) -> None:
        self._database = resources.database
        self._changed = asyncio.Event()
        self._warmed: deque[str] = deque(maxlen=1000)

    def wake(self) -> None:
        self._changed.set()

    async def run(self, session: aiohttp.ClientSession, placement: Placement) -> None:
        """Warms until cancelled."""
        free = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as hints:
            while True:
                await self._changed.wait()
                self._changed.clear()
                for adapter, base in await self._news():
                    hints.create_task(_hint(session, placement, free, adapter, base))

    async def _news(self) -> list[tuple[str, str]]:
        """Adapters of final models not seen before, newest first, each with its base."""
        query = (
            select(AdapterRow.id, AdapterRow.manifest["base_model"].astext)
            .join(ModelRow, ModelRow.adapter_id == AdapterRow.id)
            .where(ModelRow.kind == "final", ModelRow.deleted_at.is_(None))
            .where(ModelRow.created_at > func.now() - text(f"interval '{RECENT_SECONDS} seconds'"))
            .order_by(ModelRow.created_at.desc())
            .limit(MOST)
        )
        try:
            async with self._database.control() as session:
                found = [(str(adapter), str(base)) for adapter, base in await session.execute(query)]
        except DatabaseUnavailable:
            return []
        news = [(adapter, base) for adapter, base in found if adapter not in self._warmed]
        self._warmed.extend(adapter for adapter, _ in news)
        return news


async def _hint(
    session: aiohttp.ClientSession, placement: Placement, free: asyncio.Semaphore, adapter: str, base: str
) -> None:
    try:
        async with free:
            replica = placement.choose(base, adapter)
            headers = {"Authorization": f"Bearer {replica.api_key}"}
            body = AdapterRef(adapter_id=adapter).model_dump()
            async with session.post(replica.url + ENSURE, json=body, headers=headers, timeout=TIMEOUT) as answer:
                if answer.status != 200:
                    log.info("replica %s did not warm %s: status %d", replica.id, adapter, answer.status)
    except (Unavailable, aiohttp.ClientError, TimeoutError, OSError) as error:
        log.info("%s was not warmed: %s", adapter, error)
