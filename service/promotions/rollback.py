"""Automatic rollback: aliases whose owner set a bound for the error rate, held against what their versions answered.

Counted are the requests that came through the alias since the promotion: not those that named the version themselves,
nor what judges and evaluations ask. Only what somebody, or an evaluation, promoted is taken back: after a
rollback nothing is until the next promotion, so that a failure of everything does not walk through the history.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, text

from service.contracts.ids import ProjectId
from service.db import ControlSession, DatabaseUnavailable
from service.errors import ApiError
from service.registry import catalog, promote
from service.registry.history import SERVICE
from service.resources import Resources

SWEEP_SECONDS = 2.0

# A change that moved no requests, such as of the bound itself, begins nothing anew.
SUSPECTS = text(
    """
    select a.registered_id, a.alias, a.revision, a.project_id, r.name, c.version,
      sum(c.requests)::bigint as requests, sum(c.errors)::bigint as errors
    from adapter_aliases a
    join registered_adapters r on r.id = a.registered_id and r.deleted_at is null
    cross join lateral (
      select h.action, h.revision from alias_changes h
      where h.registered_id = a.registered_id and h.alias = a.alias and h.action not in ('shadow', 'update')
      order by h.revision desc limit 1
    ) last
    join alias_counts c on c.registered_id = a.registered_id and c.alias = a.alias and c.revision >= last.revision
      and not c.shadow and c.bucket > now() - make_interval(secs => (a.automatic_rollback ->> 'window_seconds')::float8)
    where a.automatic_rollback is not null and last.action in ('promote', 'traffic')
      and (
        (a.traffic is null and c.version = a.version)
        or a.traffic @> jsonb_build_array(jsonb_build_object('version', c.version))
      )
    group by a.registered_id, a.alias, r.name, c.version
    having sum(c.requests) >= (a.automatic_rollback ->> 'min_requests')::bigint
      and sum(c.errors) > (a.automatic_rollback ->> 'max_error_rate')::float8 * sum(c.requests)
    """
)

log = logging.getLogger("service.promotions")


async def run(resources: Resources) -> None:
    while True:
        try:
            await sweep(resources)
        except DatabaseUnavailable as error:
            log.warning("error rates are looked at later: %s", error)
        await asyncio.sleep(SWEEP_SECONDS)


async def sweep(resources: Resources) -> int:
    """Rolls back what fails too often; gives how many. Any number of processes may sweep at once."""
    async with resources.database.control() as session:
        suspects: Sequence[Row[Any]] = (await session.execute(SUSPECTS)).all()
    done = 0
    for suspect in suspects:
        try:
            async with resources.database.control() as session:
                done += await _roll_back(session, suspect)
        except ApiError as error:
            log.info("%s@%s stays: %s", suspect.name, suspect.alias, error.message)
    return done


async def _roll_back(session: ControlSession, suspect: Row[Any]) -> bool:
    """False where the alias has changed since, or where the version that fails is the one to go back to."""
    project = ProjectId(suspect.project_id)
    registered = await catalog.lock(session, project, suspect.name)
    alias = await promote.find(session, registered, suspect.alias)
    back = await promote.previous(session, registered, alias)
    if alias.revision != suspect.revision or back in (None, suspect.version):
        return False
    reason = f"{suspect.errors} of {suspect.requests} requests to v{suspect.version} failed"
    await promote.rollback(
        session,
        project,
        suspect.name,
        suspect.alias,
        actor=SERVICE,
        reason=reason,
        action="automatic_rollback",
    )
    log.warning("%s@%s went back to v%s: %s", suspect.name, suspect.alias, back, reason)
    return True
