"""One LISTEN connection that tells this process when another one changed keys, models or replicas.

A notification is a hint: it makes caches forget early. Whoever keeps a cache also gives its entries a short life, since
a notification is lost whenever the connection is. After each reconnection every subscriber is called, as if told.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Literal

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from service.settings import ServiceSettings

CHANNEL = "weft"
CONNECT_SECONDS = 5.0
PROBE_SECONDS = 5.0
RETRY_SECONDS = 1.0

Kind = Literal["key", "model", "replica"]

log = logging.getLogger("service.notifications")


async def notify(session: AsyncSession, kind: Kind) -> None:
    """Tells every process that something of `kind` changed, once the session's transaction commits."""
    await session.execute(text("select pg_notify(:channel, :kind)"), {"channel": CHANNEL, "kind": kind})


class Notifications:
    """Subscribers by kind, and the connection that wakes them. One per process, on the control role."""

    def __init__(self, settings: ServiceSettings) -> None:
        url = settings.control_database_url.get_secret_value()
        # Without a pool: a connection that listens must never be handed to anyone else.
        self._engine = create_async_engine(url, poolclass=NullPool, connect_args={"timeout": CONNECT_SECONDS})
        self._subscribers: dict[str, list[Callable[[], None]]] = {}

    def subscribe(self, kind: Kind, callback: Callable[[], None]) -> None:
        """Calls `callback`, on the event loop, whenever something of `kind` may have changed. It must not block."""
        self._subscribers.setdefault(kind, []).append(callback)

    async def run(self) -> None:
        """Listens until cancelled, reconnecting for as long as it takes."""
        while True:
            try:
                await self._listen()
            except Exception as error:
                log.warning("not listening for notifications (%s); trying again", type(error).__name__)
            await asyncio.sleep(RETRY_SECONDS)

    async def _listen(self) -> None:
        async with self._engine.connect() as connection:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            await driver.add_listener(CHANNEL, self._heard)
            self._wake_all()
            try:
                while True:
                    # A connection cut without a word looks idle for ever; a question brings it to light.
                    await asyncio.sleep(PROBE_SECONDS)
                    await driver.execute("select 1", timeout=PROBE_SECONDS)
            finally:
                driver.terminate()

    def _heard(self, _connection: object, _pid: int, _channel: str, kind: object) -> None:
        for callback in self._subscribers.get(str(kind), ()):
            callback()

    def _wake_all(self) -> None:
        for callbacks in self._subscribers.values():
            for callback in callbacks:
                callback()
