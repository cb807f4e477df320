"""Many workers with a short lease, seeded mishaps of every kind, two reapers: the invariants hold all the time.

A worker dies silently, comes back as a zombie, repeats its calls, hands jobs back or fails them, while owners cancel
and pause. Nothing of a stale epoch is ever accepted.
"""

import asyncio
import dataclasses
import random
from collections import Counter

from service.contracts.ids import JobId, ProjectId
from service.contracts.job import TERMINAL
from service.contracts.worker import Lease
from service.db import Database
from service.errors import InvalidRequest, LeaseLost
from service.jobs import lifecycle
from service.leases import reap
from tests.service.stage import Stage

WORKERS, PROJECTS, JOBS_EACH, CAP = 8, 4, 10, 2
LEASE_SECONDS = 0.6
DEADLINE = 150.0


@dataclasses.dataclass
class Chaos:
    stage: Stage
    stop: asyncio.Event
    counts: Counter[str] = dataclasses.field(default_factory=Counter[str])

    async def worker(self, number: int) -> None:
        dice = random.Random(number)
        while not self.stop.is_set():
            lease = await self.stage.claim(worker=f"w{number}", wait_seconds=0.3)
            if lease is not None:
                await self._train(lease, dice)

    async def _train(self, lease: Lease, dice: random.Random) -> None:
        fate = dice.choices(["succeed", "vanish", "zombie", "fail", "release"], [5, 2, 3, 0.5, 1])[0]
        self.counts[fate] += 1
        try:
            await self.stage.report(lease, step=1, tokens=10)
            if dice.random() < 0.5:
                await self.stage.checkpoint(lease, step=lease.epoch, tokens=10)
            if fate == "zombie":
                await asyncio.sleep(LEASE_SECONDS * (1 + dice.random()))
            if fate != "vanish":
                await self._end(lease, "release" if fate == "release" else "fail" if fate == "fail" else "succeed")
        except LeaseLost:
            self.counts["refused"] += 1

    async def _end(self, lease: Lease, how: str) -> None:
        """Ends twice: every answer may get lost."""
        for _ in range(2):
            if how == "succeed":
                finished = await self.stage.succeed(lease, tokens=10)
            elif how == "fail":
                failure = {"code": "test", "message": "as the dice fell"}
                finished = await self.stage.finish(lease, outcome="failed", tokens=10, failure=failure)
            else:
                finished = await self.stage.finish(lease, outcome="released", tokens=10)
            if finished.status == "succeeded":
                holder = await self.stage.row(lease.spec.job_id)
                self.counts["stale accepted"] += holder.epoch != lease.epoch

    async def owner(self, jobs: list[tuple[ProjectId, JobId]]) -> None:
        dice = random.Random(99)
        for project, job in dice.sample(jobs, len(jobs) // 5):
            await asyncio.sleep(dice.random() * 0.2)
            ask = dice.choice([lifecycle.cancel, lifecycle.pause])
            try:
                async with self.stage.resources.database.tenant(project) as session:
                    await ask(session, job)
            except InvalidRequest:
                self.counts["too late"] += 1

    async def watch(self) -> None:
        """The cap holds at every look; paused jobs are resumed, so that all of them end."""
        running = "select count(*) from jobs where status = 'running' group by project_id"
        while not self.stop.is_set():
            now = [row[0] for row in await self.stage.rows(running)]
            self.counts["most running"] = max(self.counts["most running"], *now, 0)
            for row in await self.stage.rows("select project_id, id from jobs where status = 'paused'"):
                async with self.stage.resources.database.tenant(row.project_id) as session:
                    await lifecycle.resume(session, row.id)
            if await self._all_ended():
                self.stop.set()
            await asyncio.sleep(0.1)

    async def _all_ended(self) -> bool:
        query = "select count(*) from jobs where status <> all(:terminal)"
        return (await self.stage.rows(query, terminal=sorted(TERMINAL)))[0][0] == 0


async def test_nothing_stale_is_accepted_and_everything_ends_once(stage: Stage) -> None:
    short = {"lease_ttl_seconds": LEASE_SECONDS, "reap_seconds": 0.05, "max_lost_workers": 5}
    settings = stage.resources.settings.model_copy(update=short)
    resources = dataclasses.replace(stage.resources, settings=settings, database=Database(settings))
    chaos = Chaos(Stage(resources, stage.numbers), asyncio.Event())
    jobs = [
        (project, job)
        for project in [await stage.project(max_running_jobs=CAP) for _ in range(PROJECTS)]
        for job in await stage.jobs(project, JOBS_EACH)
    ]
    reapers = [asyncio.create_task(reap.run(resources)) for _ in range(2)]
    try:
        async with asyncio.timeout(DEADLINE), asyncio.TaskGroup() as group:
            group.create_task(chaos.watch())
            group.create_task(chaos.owner(jobs))
            for number in range(WORKERS):
                group.create_task(chaos.worker(number))
    finally:
        for reaper in reapers:
            reaper.cancel()
        await asyncio.gather(*reapers, return_exceptions=True)
        await resources.database.close()
    print(dict(chaos.counts))
    await _check(stage, chaos.counts, [job for _, job in jobs])


async def _check(stage: Stage, counts: Counter[str], jobs: list[str]) -> None:
    assert counts["stale accepted"] == 0
    assert counts["refused"] > 0, "no zombie ever came back"
    assert counts["most running"] == CAP
    ends = Counter([(await stage.row(job)).status for job in jobs])
    assert ends["succeeded"] > 0
    assert sum(ends.values()) == len(jobs)
    consistent = """
        select j.id, j.status, count(distinct a.id) adapters, count(distinct m.name) names, count(distinct u.id) usage,
               coalesce(bool_and(a.epoch = j.epoch), true) same_epoch
        from jobs j left join adapters a on a.job_id = j.id left join models m on m.job_id = j.id
        left join usage u on u.id = j.id || ':' || j.epoch
        group by j.id, j.status
    """
    for row in await stage.rows(consistent):
        expected = 1 if row.status == "succeeded" else 0
        assert (row.adapters, row.names, row.usage, row.same_epoch) == (expected, expected, expected, True), row
    assert (await stage.rows("select count(*) from usage"))[0][0] == ends["succeeded"]
    gaps = "select job_id from job_events group by job_id having count(*) <> max(seq) or min(seq) <> 1"
    assert await stage.rows(gaps) == [], "sequence numbers have no gaps"
