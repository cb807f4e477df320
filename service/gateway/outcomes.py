"""How many requests of each registered version were answered and how many failed, in all processes together.

Counted in memory, added to the database once a second in buckets of BUCKET_SECONDS by its clock, and deleted after a
day. A process that is killed takes its last second with it.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from sqlalchemy import Table, bindparam, delete, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from service.db import Database, DatabaseUnavailable
from service.errors import ApiError
from service.gateway.models import VersionCountRow
from service.gateway.resolve import Version

FLUSH_SECONDS = 1.0
BUCKET_SECONDS = 5
KEPT = text("interval '1 day'")
SWEEP_SECONDS = 600.0
FLEETS_FAULTS = frozenset({"no_replica", "no_capacity", "adapter_storage_unavailable"})
"""Another version would have had no better answer."""
VERSIONS_FAULTS = frozenset({"adapter_invalid", "adapter_not_found"})

log = logging.getLogger("service.gateway")


@dataclass(frozen=True, slots=True)
class Counts:
    """`errors` are among `requests`."""

    requests: int
    errors: int


@dataclass(slots=True)
class _Tally:
    requests: int = 0
    errors: int = 0


_counts = cast("Table", VersionCountRow.__table__)
_now = func.date_bin(text(f"interval '{BUCKET_SECONDS} seconds'"), func.now(), text("timestamptz 'epoch'"))
_given: dict[str, Any] = {
    name: bindparam(name) for name in ("registered_id", "version", "shadow", "project_id", "requests", "errors")
}
_new = insert(_counts).values({**_given, "bucket": _now})
ADD = _new.on_conflict_do_update(
    index_elements=["registered_id", "version", "shadow", "bucket"],
    set_={
        "requests": _counts.c.requests + _new.excluded.requests,
        "errors": _counts.c.errors + _new.excluded.errors,
    },
)


@dataclass
class Outcomes:
    """One process's. `note` is for the event loop's thread only."""

    database: Database
    _tallies: dict[tuple[Version, bool], _Tally] = field(default_factory=dict[tuple[Version, bool], _Tally])

    def note(self, version: Version, *, failed: bool, shadow: bool = False) -> None:
        tally = self._tallies.get((version, shadow))
        if tally is None:
            tally = self._tallies[version, shadow] = _Tally()
        tally.requests += 1
        tally.errors += failed

    def note_problem(self, version: Version | None, problem: ApiError, *, shadow: bool = False) -> None:
        """Where it speaks against the version that was asked, and not against the client or the fleet."""
        fault = problem.code in VERSIONS_FAULTS or (problem.status >= 500 and problem.code not in FLEETS_FAULTS)
        if version is not None and fault:
            self.note(version, failed=True, shadow=shadow)

    async def run(self) -> None:
        """Adds until cancelled."""
        swept = -SWEEP_SECONDS
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await self.flush()
            if loop.time() - swept >= SWEEP_SECONDS:
                swept = loop.time()
                await self._sweep()

    async def flush(self) -> None:
        """Adds what was counted since the last time; what cannot be added waits for the next."""
        tallies, self._tallies = self._tallies, {}
        if not tallies:
            return
        try:
            async with self.database.control() as session:
                await session.execute(ADD, _rows(tallies))
        except BaseException as error:
            self._put_back(tallies)
            if not isinstance(error, DatabaseUnavailable):
                raise
            log.warning("counts of versions wait: %s", error)

    async def _sweep(self) -> None:
        try:
            async with self.database.control() as session:
                await session.execute(delete(VersionCountRow).where(VersionCountRow.bucket < func.now() - KEPT))
        except DatabaseUnavailable as error:
            log.warning("old counts of versions stay for now: %s", error)

    def _put_back(self, tallies: Mapping[tuple[Version, bool], _Tally]) -> None:
        for key, old in tallies.items():
            tally = self._tallies.setdefault(key, _Tally())
            tally.requests += old.requests
            tally.errors += old.errors


def _rows(tallies: Mapping[tuple[Version, bool], _Tally]) -> list[dict[str, Any]]:
    """Sorted, so that two processes never wait for each other's rows."""
    return [
        {
            "registered_id": version.registered_id,
            "version": version.number,
            "shadow": shadow,
            "project_id": version.owner,
            "requests": tally.requests,
            "errors": tally.errors,
        }
        for (version, shadow), tally in sorted(
            tallies.items(), key=lambda item: (item[0][0].registered_id, item[0][0].number, item[0][1])
        )
    ]


async def counted(
    session: AsyncSession, registered_id: str, version: int, seconds: float, *, shadow: bool = False
) -> Counts:
    """What was answered and failed in the last seconds, give or take a bucket."""
    requests, errors = func.sum(VersionCountRow.requests), func.sum(VersionCountRow.errors)
    query = select(func.coalesce(requests, 0), func.coalesce(errors, 0)).where(
        VersionCountRow.registered_id == registered_id,
        VersionCountRow.version == version,
        VersionCountRow.shadow == shadow,
        VersionCountRow.bucket > func.now() - text("make_interval(secs => :seconds)").bindparams(seconds=seconds),
    )
    return Counts(*(int(number) for number in (await session.execute(query)).one()))
