"""Whose turn it is: weighted fair queueing over projects, by training tokens served.

A project's virtual time is the tokens it was served divided by its weight; the project with the least goes next. One
that turns busy starts at the least virtual time of those it competes with, so idling saves up no credit.
"""

from dataclasses import dataclass

from sqlalchemy import text

from service.db import ControlSession

# The cap is checked again under the lock (`claim`): this statement sees jobs as they were when it began.
NEXT_PROJECT = text("""
    select p.id, p.busy from projects p
    cross join lateral (select count(*) as jobs from jobs r where r.project_id = p.id and r.status = 'running') running
    where p.status = 'active' and running.jobs < p.max_running_jobs
      and exists (select 1 from jobs j where j.project_id = p.id and j.status = 'queued' and j.not_before <= now()
                  and j.model = :base_model and j.spec ->> 'base_fingerprint' = :base_fingerprint)
    order by p.virtual_time, running.jobs, p.id limit 1
    for no key update of p skip locked
""")

# With nobody to compete with, the highest virtual time stands for the system's own.
WAKE = text("""
    update projects set busy = true, virtual_time = greatest(virtual_time, coalesce(
        (select min(q.virtual_time) from projects q
         where q.busy and q.status = 'active' and q.max_running_jobs > 0 and exists (
             select 1 from jobs j where j.project_id = q.id and j.status in ('queued', 'running')
             and j.model = :base_model)),
        (select max(q.virtual_time) from projects q)))
    where id = :project
""")

REST = text("""
    update projects set busy = false where id in (
        select p.id from projects p where p.busy and not exists (
            select 1 from jobs j where j.project_id = p.id and j.status in ('queued', 'running'))
        for no key update skip locked)
""")

CHARGE = text("update projects set virtual_time = virtual_time + :tokens / weight where id = :project")


@dataclass(frozen=True)
class Pool:
    """The workers of one base model; they train jobs of exactly this base."""

    base_model: str
    base_fingerprint: str


async def next_project(session: ControlSession, pool: Pool) -> str | None:
    """Locks and returns the least served project with a due job and room for it; None where there is none."""
    while True:
        query = {"base_model": pool.base_model, "base_fingerprint": pool.base_fingerprint}
        found = (await session.execute(NEXT_PROJECT, query)).one_or_none()
        if found is None or found.busy:
            return found.id if found else None
        await session.execute(WAKE, {"project": found.id, "base_model": pool.base_model})


async def rest(session: ControlSession) -> None:
    """Marks the projects that have run out of work."""
    await session.execute(REST)


async def charge(session: ControlSession, project: str, tokens: int) -> None:
    """Counts training against a project's share."""
    if tokens > 0:
        await session.execute(CHARGE, {"project": project, "tokens": float(tokens)})
