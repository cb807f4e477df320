"""Which replicas this process may send requests to, and for which adapters to none: in memory, refreshed each second.

The rows are hints. A replica that did not answer is set back for a while. While the database is down the last list
stands, and for one time to live after it too: nobody could announce itself meanwhile.
"""

import asyncio
import logging
import time
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import func, select

from service.contracts.replica import NOT_NUMBERS
from service.db import DatabaseUnavailable
from service.errors import Unprocessable
from service.replicas.models import ReplicaRow
from service.replicas.quarantine import quarantined
from service.resources import Resources

POLL_SECONDS = 1.0
REFRESH_SECONDS = 2.0
"""Longest wait of a request that wants the list anew."""
SUSPECT_SECONDS = 3.0
"""More than the gateway takes to ask a suspect again, so that a silent one stays one."""

log = logging.getLogger("service.replicas")


@dataclass(frozen=True, slots=True)
class Replica:
    id: str
    url: str
    api_key: str
    base_model: str
    max_loras: int
    adapters: frozenset[str] = frozenset()
    """Which adapters it held, in memory or on disk, when it last said so."""


class Membership:
    """The ready replicas by base model. One per process."""

    def __init__(self, resources: Resources) -> None:
        self._database = resources.database
        self._ttl = resources.settings.replica_ttl_seconds
        self._trust_until = 0.0
        self._by_base: dict[str, tuple[Replica, ...]] = {}
        self._suspect_until: dict[str, float] = {}
        self._quarantined = frozenset[str]()
        self._wake = asyncio.Event()

    def ready(self, base: str) -> tuple[Replica, ...]:
        """Those that said within the last few seconds that they are ready, sorted by id."""
        return self._by_base.get(base, ())

    def check(self, adapter: str) -> None:
        """Raises Unprocessable where no replica may be asked for the adapter."""
        if adapter in self._quarantined:
            raise Unprocessable(NOT_NUMBERS, code="adapter_invalid", param="model")

    def suspect(self, replica: Replica) -> None:
        """The replica did not answer: for a short time it is only asked where no other is left."""
        self._suspect_until[replica.id] = time.monotonic() + SUSPECT_SECONDS

    def trust(self, replica: Replica) -> None:
        """The replica answers after all."""
        self._suspect_until.pop(replica.id, None)

    def is_suspect(self, replica: Replica) -> bool:
        until = self._suspect_until.get(replica.id)
        return until is not None and time.monotonic() < until

    def suspects(self) -> tuple[Replica, ...]:
        """Every listed replica that is one now."""
        return tuple(each for replicas in self._by_base.values() for each in replicas if self.is_suspect(each))

    def wake(self) -> None:
        """Something changed: refresh now instead of at the next poll."""
        self._wake.set()

    async def refresh(self) -> None:
        """Reads the rows. Keeps the list as it is where the database does not answer in time."""
        alive = ReplicaRow.seen_at > func.now() - timedelta(seconds=self._ttl)
        query = select(ReplicaRow, alive).where(ReplicaRow.state == "ready").order_by(ReplicaRow.id)
        try:
            async with asyncio.timeout(REFRESH_SECONDS), self._database.control() as session:
                rows = (await session.execute(query)).all()
                self._quarantined = await quarantined(session)
        except (DatabaseUnavailable, TimeoutError) as error:
            log.warning("keeping the last known replicas: %s", error)
            self._trust_until = time.monotonic() + self._ttl
            return
        trusted = self._known() if time.monotonic() < self._trust_until else frozenset[str]()
        found: dict[str, list[Replica]] = {}
        for row, lately in rows:
            if lately or row.id in trusted:
                found.setdefault(row.base_model, []).append(_replica(row))
        self._by_base = {base: tuple(replicas) for base, replicas in found.items()}
        self._suspect_until = {key: until for key, until in self._suspect_until.items() if until > time.monotonic()}

    def _known(self) -> frozenset[str]:
        return frozenset(replica.id for replicas in self._by_base.values() for replica in replicas)

    async def run(self) -> None:
        """Refreshes until cancelled."""
        while True:
            self._wake.clear()
            try:
                await self.refresh()
            except Exception:
                log.exception("the list of replicas cannot be refreshed; trying again")
            try:
                await asyncio.wait_for(self._wake.wait(), POLL_SECONDS)
            except TimeoutError:
                continue


def _replica(row: ReplicaRow) -> Replica:
    return Replica(row.id, row.url, row.api_key, row.base_model, row.max_loras, frozenset(row.adapters))
