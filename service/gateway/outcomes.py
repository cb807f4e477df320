"""What came of the requests that each alias sent to each version, in all processes together.

Counted in memory, added to the database once a second in buckets of BUCKET_SECONDS by its clock. Buckets of an alias's
present revision become one after a day, others are deleted then. A process that is killed takes its last second along.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from sqlalchemy import Table, bindparam, func, text
from sqlalchemy.dialects.postgresql import insert

from service.db import Database, DatabaseUnavailable
from service.errors import ApiError
from service.gateway.events import NOTHING, Usage
from service.gateway.resolve import Version
from service.registry.models import AliasCountRow
from service.registry.traffic import SUMS, Counts

FLUSH_SECONDS = 1.0
BUCKET_SECONDS = 5
SWEEP_SECONDS = 600.0
FLEETS_FAULTS = frozenset({"no_replica", "no_capacity", "adapter_storage_unavailable"})
"""Another version would have had no better answer."""
VERSIONS_FAULTS = frozenset({"adapter_invalid", "adapter_not_found"})

log = logging.getLogger("service.gateway")


@dataclass(frozen=True, slots=True)
class Outcome:
    """`seconds` is the time to the first token of a stream, and of any other answer to its end; None says nothing."""

    failed: bool
    usage: Usage = NOTHING
    seconds: float | None = None
    stream: bool = False


KEYS = ("registered_id", "alias", "revision", "version", "shadow", "bucket")
_counts = cast("Table", AliasCountRow.__table__)
_now = func.date_bin(text(f"interval '{BUCKET_SECONDS} seconds'"), func.now(), text("timestamptz 'epoch'"))
_given: dict[str, Any] = {name: bindparam(name) for name in (*KEYS[:-1], "project_id", *SUMS)}
_new = insert(_counts).values({**_given, "bucket": _now})
ADD = _new.on_conflict_do_update(
    index_elements=KEYS, set_={name: _counts.c[name] + _new.excluded[name] for name in SUMS}
)
# One process at a time, so that no two wait for each other's rows.
SWEEPER = text("select pg_try_advisory_xact_lock(hashtextextended('alias counts', 0))")
CURRENT = """exists (
    select 1 from adapter_aliases a
    where a.registered_id = c.registered_id and a.alias = c.alias and a.revision = c.revision
  )"""
ROLL_UP = text(
    f"""
    with old as (
      delete from alias_counts where bucket < now() - interval '1 day' and bucket > 'epoch' returning *
    )
    insert into alias_counts ({", ".join((*KEYS, "project_id", *SUMS))})
    select registered_id, alias, revision, version, shadow, timestamptz 'epoch', project_id,
      {", ".join(f"sum({name})" for name in SUMS)}
    from old c where {CURRENT}
    group by registered_id, alias, revision, version, shadow, project_id
    on conflict ({", ".join(KEYS)}) do update set
      {", ".join(f"{name} = alias_counts.{name} + excluded.{name}" for name in SUMS)}
    """
)
FORGET = text(f"delete from alias_counts c where bucket = 'epoch' and not {CURRENT}")


@dataclass
class Outcomes:
    """One process's. `note` is for the event loop's thread only."""

    database: Database
    _tallies: dict[tuple[Version, bool], Counts] = field(default_factory=dict[tuple[Version, bool], Counts])

    def note(self, version: Version | None, outcome: Outcome, *, shadow: bool = False) -> None:
        """Where an alias led to the version."""
        if version is None or version.alias is None:
            return
        tally = self._tallies.get((version, shadow))
        if tally is None:
            tally = self._tallies[version, shadow] = Counts()
        _add(tally, outcome)

    def note_problem(self, version: Version | None, problem: ApiError, *, shadow: bool = False) -> None:
        """Where it speaks against the version that was asked, and not against the client or the fleet."""
        if problem.code in VERSIONS_FAULTS or (problem.status >= 500 and problem.code not in FLEETS_FAULTS):
            self.note(version, Outcome(failed=True), shadow=shadow)

    async def run(self) -> None:
        """Adds until cancelled."""
        swept = -SWEEP_SECONDS
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await self.flush()
            if loop.time() - swept >= SWEEP_SECONDS:
                swept = loop.time()
                await self.sweep()

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
            log.warning("counts of aliases wait: %s", error)

    async def sweep(self) -> None:
        """Makes one bucket of those older than a day, and deletes what no alias's revision needs any more."""
        try:
            async with self.database.control() as session:
                if await session.scalar(SWEEPER):
                    await session.execute(ROLL_UP)
                    await session.execute(FORGET)
        except DatabaseUnavailable as error:
            log.warning("old counts of aliases stay for now: %s", error)

    def _put_back(self, tallies: Mapping[tuple[Version, bool], Counts]) -> None:
        for key, old in tallies.items():
            tally = self._tallies.setdefault(key, Counts())
            for name in SUMS:
                setattr(tally, name, getattr(tally, name) + getattr(old, name))


def _add(tally: Counts, outcome: Outcome) -> None:
    tally.requests += 1
    tally.errors += outcome.failed
    tally.input_tokens += outcome.usage.prompt_tokens
    tally.output_tokens += outcome.usage.completion_tokens
    if outcome.seconds is None:
        return
    if outcome.stream:
        tally.streams += 1
        tally.first_token_ms += outcome.seconds * 1000
    else:
        tally.answers += 1
        tally.answer_ms += outcome.seconds * 1000


def _rows(tallies: Mapping[tuple[Version, bool], Counts]) -> list[dict[str, Any]]:
    """Sorted, so that two processes never wait for each other's rows."""
    rows = [
        {
            "registered_id": version.registered_id,
            "alias": version.alias,
            "revision": version.revision,
            "version": version.number,
            "shadow": shadow,
            "project_id": version.owner,
            **asdict(tally),
        }
        for (version, shadow), tally in tallies.items()
    ]
    return sorted(rows, key=lambda row: [row[name] for name in KEYS[:-1]])
