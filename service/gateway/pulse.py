"""Whether replicas that keep somebody waiting still live: a connection to a stopped process looks like patience.

A replica is asked for its health only while a request has waited long on it or it is already a suspect, so a fleet that
answers costs nothing. One that stays silent becomes a suspect and the requests that wait on it are let go, so that they
can be put to another. What an engine does behind a living server is its launcher's to watch.
"""

import asyncio
import logging
from types import TracebackType

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
    """A block that waits on a replica, as an async context. Raises Silent inside when the wait has become hopeless."""

    def __init__(self, waits: "set[Wait]", replica: Replica) -> None:
        self._waits = waits
        self.replica = replica

    async def __aenter__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.since = self._loop.time()
        self._clock = asyncio.timeout(None)
        await self._clock.__aenter__()
        self._waits.add(self)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waits.discard(self)
        try:
            await self._clock.__aexit__(kind, error, trace)
        except TimeoutError:
            raise Silent from None

    def end(self) -> None:
        """Raises Silent in the block; once only, since an expiring timeout cannot be moved."""
        self._waits.discard(self)
        self._clock.reschedule(self._loop.time())


class Pulse:
    """One per process; needs `run` beside it."""

    def __init__(self, session: aiohttp.ClientSession, membership: Membership) -> None:
        self._session = session
        self._membership = membership
        self._waits: set[Wait] = set()
        self._doubted: dict[str, Replica] = {}

    def wait(self, replica: Replica) -> Wait:
        return Wait(self._waits, replica)

    def doubt(self, replica: Replica) -> None:
        """The replica failed in a way that may be its end: it is asked at the next look."""
        self._doubted[replica.id] = replica

    async def run(self) -> None:
        """Looks until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            late = asyncio.get_running_loop().time() - PATIENCE_SECONDS
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
                wait.end()

    async def _healthy(self, replica: Replica) -> bool:
        try:
            async with self._session.get(f"{replica.url}/health", timeout=PROBE_TIMEOUT) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False
