"""Whether replicas that keep somebody waiting still live: a connection to a stopped process looks like patience.

A replica is asked for its health only while a request has waited long on it or it is already a suspect, so a fleet that
answers costs nothing. One that stays silent becomes a suspect and the requests that wait on it are let go, so that they
can be put to another. What an engine does behind a living server is its launcher's to watch.
"""

import asyncio
import logging
import time
from collections.abc import Callable

import aiohttp

from service.replicas.membership import Membership, Replica

LOOK_SECONDS = 0.5
PATIENCE_SECONDS = 1.0
"""A request waits so long before anybody asks why."""
PROBE_TIMEOUT = aiohttp.ClientTimeout(total=1.5)

log = logging.getLogger("service.gateway")


class Silent(Exception):
    """The replica that was waited on does not answer anything any more."""


class Wait:
    """A block that waits on a replica, as a context. `end` is called with Silent when the wait has become hopeless."""

    __slots__ = ("_waits", "end", "replica", "since")

    def __init__(self, waits: "set[Wait]", replica: Replica, end: Callable[[Exception], None]) -> None:
        self._waits = waits
        self.replica = replica
        self.end = end

    def __enter__(self) -> None:
        self.since = time.monotonic()
        self._waits.add(self)

    def __exit__(self, *_: object) -> None:
        self._waits.discard(self)


class Pulse:
    """One per process; needs `run` beside it."""

    def __init__(self, session: aiohttp.ClientSession, membership: Membership) -> None:
        self._session = session
        self._membership = membership
        self._waits: set[Wait] = set()
        self._doubted: dict[str, Replica] = {}

    def wait(self, replica: Replica, end: Callable[[Exception], None]) -> Wait:
        return Wait(self._waits, replica, end)

    def doubt(self, replica: Replica) -> None:
        """The replica failed in a way that may be its end: it is asked at the next look."""
        self._doubted[replica.id] = replica

    async def run(self) -> None:
        """Looks until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            late = time.monotonic() - PATIENCE_SECONDS
            asked = {wait.replica.id: wait.replica for wait in self._waits if wait.since < late}
            asked |= {replica.id: replica for replica in self._membership.suspects()} | self._doubted
            self._doubted.clear()
            await asyncio.gather(*(self._look_at(replica) for replica in asked.values()))

    async def _look_at(self, replica: Replica) -> None:
        suspect = self._membership.is_suspect(replica)
        if suspect:
            # It stays one while it is asked.
            self._membership.suspect(replica)
        if await self._healthy(replica):
            self._membership.trust(replica)
            return
        if not suspect:
            log.warning("replica %s does not answer its health check", replica.id)
        self._membership.suspect(replica)
        others = self._membership.ready(replica.base_model)
        if any(not self._membership.is_suspect(other) for other in others):
            for wait in [wait for wait in self._waits if wait.replica.id == replica.id]:
                wait.end(Silent())

    async def _healthy(self, replica: Replica) -> bool:
        try:
            async with self._session.get(f"{replica.url}/health", timeout=PROBE_TIMEOUT) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False
