"""How fast jobs of each base go, and which workers there are: learned from what has happened, for `outlook`.

Runs in every service process; each look writes what it finds, so any number may run at once.
"""

import asyncio
import logging

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from service.db import ControlSession, DatabaseUnavailable
from service.jobs.models import PaceRow
from service.resources import Resources

RECENT_JOBS = 50
FEWEST_JOBS = 3
"""Fewer tell nothing about the next."""
LOOK_SECONDS = 15.0
BYTES_PER_TOKEN = 4
"""Of a base of which nothing is known yet."""

log = logging.getLogger("service.jobs")

LEARN = text("""
    insert into paces
      (base_model, base_fingerprint, jobs, seconds_low, seconds_median, seconds_high, tokens_per_byte)
    select :base_model, :base_fingerprint, count(*),
      percentile_cont(0.1) within group (order by seconds / tokens),
      percentile_cont(0.5) within group (order by seconds / tokens),
      percentile_cont(0.9) within group (order by seconds / tokens),
      sum(tokens)::double precision / sum(bytes)
    from (
      select j.leased_seconds as seconds, j.trained_tokens as tokens,
        f.bytes * (j.spec #>> '{hyperparameters,n_epochs}')::int as bytes
      from jobs j join files f on f.project_id = j.project_id and f.id = j.training_file
      where j.status = 'succeeded' and j.model = :base_model and j.spec ->> 'base_fingerprint' = :base_fingerprint
        and j.trained_tokens > 0 and j.leased_seconds > 0 and f.bytes > 0
      order by j.finished_at desc limit :recent
    ) last
    having count(*) >= :fewest
    on conflict (base_model, base_fingerprint) do update set
      jobs = excluded.jobs, seconds_low = excluded.seconds_low, seconds_median = excluded.seconds_median,
      seconds_high = excluded.seconds_high, tokens_per_byte = excluded.tokens_per_byte
""")

SEEN = text("""
    insert into workers (base_model, base_fingerprint, name) values (:base_model, :base_fingerprint, :name)
    on conflict (base_model, base_fingerprint, name) do update set seen_at = now()
    where workers.seen_at < now() - interval '5 s'
""")

# A worker whose hands are full asks for nothing, and is there all the same.
AT_WORK = text("""
    update workers w set seen_at = now()
    where w.seen_at < now() - interval '10 s' and exists (
      select 1 from jobs j where j.status = 'running' and j.lease_until > now() and j.lease_owner = w.name
        and j.model = w.base_model and j.spec ->> 'base_fingerprint' = w.base_fingerprint)
""")

LONG_GONE = text("delete from workers where seen_at < now() - interval '1 day'")


async def run(resources: Resources) -> None:
    while True:
        try:
            async with resources.database.control() as session:
                await learn(session, resources)
        except DatabaseUnavailable as error:
            log.warning("the pace of jobs is looked at later: %s", error)
        await asyncio.sleep(LOOK_SECONDS)


async def learn(session: ControlSession, resources: Resources) -> None:
    await session.execute(AT_WORK)
    await session.execute(LONG_GONE)
    for base in resources.settings.base_models:
        named = {"base_model": base.name, "base_fingerprint": base.fingerprint}
        await session.execute(LEARN, {**named, "recent": RECENT_JOBS, "fewest": FEWEST_JOBS})


async def seen(session: ControlSession, worker: str, base_model: str, base_fingerprint: str) -> None:
    """Notes that a worker of this base asks for jobs."""
    await session.execute(SEEN, {"name": worker, "base_model": base_model, "base_fingerprint": base_fingerprint})


async def known(session: AsyncSession, base_model: str, base_fingerprint: str) -> PaceRow | None:
    named = (PaceRow.base_model == base_model) & (PaceRow.base_fingerprint == base_fingerprint)
    return await session.scalar(select(PaceRow).where(named))


def expected_tokens(pace: PaceRow | None, size: int, n_epochs: int) -> int:
    """Trained tokens of a file of that many bytes."""
    per_byte = pace.tokens_per_byte if pace else 1 / BYTES_PER_TOKEN
    return max(1, round(size * n_epochs * per_byte))
