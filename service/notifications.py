"""One LISTEN connection that tells this process when another one changed keys, models, replicas, jobs or deliveries.

A notification is a hint: it makes caches forget early. Whoever keeps a cache also gives its entries a short life, since
a notification is lost whenever the connection is. After each reconnection, and twice a second from when the
connection was last known to live, every subscriber is called, as if told: whatever is cut off, and however it shows, no
cache is older than a second because of it.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Generator
from typing import Any, Literal

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from service.settings import ServiceSettings

CHANNEL = "weft"
CONNECT_SECONDS = 5.0
PROBE_SECONDS = 0.4
PROBE_TIMEOUT = 1.0
RETRY_SECONDS = 0.5
DEAF_SECONDS = 0.6
"""So long after its last sign of life the connection counts as lost. With the next one, less than a second."""
LOOK_SECONDS = 0.2
DEAF_WAKE_SECONDS = 0.3

Kind = Literal["key", "model", "replica", "job", "webhook"]

log = logging.getLogger("service.notifications")


async def notify(session: AsyncSession, kind: Kind, which: str = "") -> None:
    """Tells every process that something of `kind` changed, once the session's transaction commits.

    `which` names the thing where somebody may `watch` it alone.
    """
    sent = {"channel": CHANNEL, "payload": _payload(kind, which)}
    await session.execute(text("select pg_notify(:channel, :payload)"), sent)


def _payload(kind: Kind, which: str) -> str:
    return f"{kind} {which}" if which else kind


class Notifications:
    """Subscribers by kind, and the connection that wakes them. One per process, on the control role."""

    def __init__(self, settings: ServiceSettings) -> None:
        url = settings.control_database_url.get_secret_value()
        # Without a pool: a connection that listens must never be handed to anyone else.
        self._engine = create_async_engine(url, poolclass=NullPool, connect_args={"timeout": CONNECT_SECONDS})
        self._subscribers: dict[str, list[Callable[[], None]]] = {}
        self._watched: dict[str, set[asyncio.Event]] = {}
        self._heard_at = 0.0

    def subscribe(self, kind: Kind, callback: Callable[[], None]) -> None:
        """Calls `callback`, on the event loop, whenever something of `kind` may have changed. It must not block."""
        self._subscribers.setdefault(kind, []).append(callback)

    @contextlib.contextmanager
    def watch(self, kind: Kind, which: str = "") -> Generator[asyncio.Event]:
        """An event that is set whenever this one thing may have changed. Whoever waits clears it before they look."""
        payload, changed = _payload(kind, which), asyncio.Event()
        self._watched.setdefault(payload, set()).add(changed)
        try:
            yield changed
        finally:
            self._watched[payload].discard(changed)
            if not self._watched[payload]:
                del self._watched[payload]

    async def run(self) -> None:
        """Listens until cancelled, reconnecting for as long as it takes."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._wake_while_deaf())
            group.create_task(self._keep_listening())

    async def _wake_while_deaf(self) -> None:
        """Beside the connection: an attempt to connect may hang for seconds, and so may a connection that was cut."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if time.monotonic() - self._heard_at > DEAF_SECONDS:
                self._wake_all()
                await asyncio.sleep(DEAF_WAKE_SECONDS)

    async def _keep_listening(self) -> None:
        while True:
            try:
                await self._listen()
            except Exception as error:
                log.warning("not listening for notifications (%s); trying again", type(error).__name__)
            self._wake_all()
            await asyncio.sleep(RETRY_SECONDS)

    async def _listen(self) -> None:
        async with self._engine.connect() as connection:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            lost = asyncio.Event()

            def ended(_: object) -> None:
                lost.set()

            driver.add_termination_listener(ended)
            await driver.add_listener(CHANNEL, self._heard)
            self._heard_at = time.monotonic()
            self._wake_all()
            try:
                while not lost.is_set():
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(lost.wait(), PROBE_SECONDS)
                    # A connection cut without a word looks idle for ever; a question brings it to light.
                    await driver.execute("select 1", timeout=PROBE_TIMEOUT)
                    self._heard_at = time.monotonic()
            finally:
                driver.terminate()

    def _heard(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        kind, _, _ = str(payload).partition(" ")
        for callback in self._subscribers.get(kind, ()):
            callback()
        for changed in self._watched.get(str(payload), ()):
            changed.set()

    def _wake_all(self) -> None:
        for callbacks in self._subscribers.values():
            for callback in callbacks:
                callback()
        for watchers in self._watched.values():
            for changed in watchers:
                changed.set()
