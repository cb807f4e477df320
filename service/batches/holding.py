"""Who works on which batch: claims, renewals, and what a holder writes under its epoch.

A part is recorded in one transaction with its tokens in the ledger, and only by the holder. So whatever dies or
doubles, each line is recorded once, and what is booked is what the files say. A line whose answer was not recorded is
asked again.
"""

import asyncio
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from service.batches.lines import Result
from service.batches.models import BatchPartRow, BatchRow
from service.contracts.ids import BatchId, ProjectId
from service.contracts.layout import batch_prefix
from service.db import DatabaseUnavailable
from service.resources import Resources
from service.tenants.models import ProjectRow
from service.usage import ledger
from service.usage.ledger import UsageEntry

HELD = timedelta(seconds=30)
RENEW_SECONDS = 5.0

log = logging.getLogger("service.batches")


class Lost(Exception):
    """Somebody else holds the batch by now."""


@dataclass(frozen=True)
class State:
    """`over` says whether the batch's window has ended."""

    status: str
    over: bool


async def claim(resources: Resources, busy: Collection[str]) -> BatchRow | None:
    """The batch that was worked on least lately, of a project that is not `busy` here."""
    active = select(ProjectRow.id).where(ProjectRow.status == "active")
    free = (BatchRow.held_until.is_(None)) | (BatchRow.held_until < func.now())
    waiting = BatchRow.purged_at.is_(None), free, BatchRow.project_id.in_(active), BatchRow.project_id.not_in(busy)
    oldest = select(BatchRow.id).where(*waiting).order_by(BatchRow.held_until.asc().nulls_first(), BatchRow.created_at)
    first = oldest.limit(1).with_for_update(skip_locked=True).scalar_subquery()
    values = {"held_until": func.now() + HELD, "epoch": BatchRow.epoch + 1}
    async with resources.database.control() as session:
        return await session.scalar(update(BatchRow).where(BatchRow.id == first).values(values).returning(BatchRow))


class Holding:
    """A claimed batch, from its holder's side."""

    def __init__(self, resources: Resources, batch: BatchRow) -> None:
        self._resources = resources
        self.batch = batch
        self.project = ProjectId(batch.project_id)
        self.prefix = batch_prefix(self.project, BatchId(batch.id))
        self._parts = 0

    async def keep(self) -> None:
        """Renews until the batch is lost; returns then."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            try:
                async with self._resources.database.control() as session:
                    await self.change(session, held_until=func.now() + HELD)
            except Lost:
                return
            except DatabaseUnavailable as error:
                log.warning("batch %s is not held for the moment: %s", self.batch.id, error)

    async def give_back(self, delay: timedelta = timedelta(0)) -> None:
        """Lets others have it, after a while."""
        async with self._resources.database.control() as session:
            await self.change(session, held_until=func.now() + delay)

    async def change(self, session: AsyncSession, **values: Any) -> State:
        """Writes to the batch's row. Raises Lost."""
        own = update(BatchRow).where(BatchRow.id == self.batch.id, BatchRow.epoch == self.batch.epoch)
        changed = own.values(values).returning(BatchRow.status, BatchRow.expires_at <= func.now())
        found = (await session.execute(changed)).one_or_none()
        if found is None:
            raise Lost
        return State(*found)

    async def parts(self) -> Sequence[BatchPartRow]:
        query = select(BatchPartRow).where(BatchPartRow.batch_id == self.batch.id)
        async with self._resources.database.control() as session:
            return (await session.scalars(query.order_by(BatchPartRow.created_at, BatchPartRow.name))).all()

    async def record(self, results: Sequence[Result]) -> State:
        """Stores the results and books them. Raises Lost, and then nothing of it counts."""
        name = f"{self.batch.epoch}-{self._parts}"
        self._parts += 1
        good, bad = [each for each in results if each.good], [each for each in results if not each.good]
        for kind, chosen in (("output", good), ("error", bad)):
            if chosen:
                text = b"".join(each.text for each in chosen)
                await asyncio.to_thread(self._resources.store.put, f"{self.prefix}{name}.{kind}", text)
        async with self._resources.database.control() as session:
            state = await self.change(
                session,
                completed=BatchRow.completed + len(good),
                failed=BatchRow.failed + len(bad),
                prompt_tokens=BatchRow.prompt_tokens + sum(each.usage.prompt_tokens for each in good),
                completion_tokens=BatchRow.completion_tokens + sum(each.usage.completion_tokens for each in good),
            )
            if results:
                lines = [each.number for each in results]
                sizes = {"completed": len(good), "failed": len(bad)}
                row = BatchPartRow(batch_id=self.batch.id, name=name, project_id=self.project, lines=lines, **sizes)
                session.add(row)
                await ledger.record(session, [self._entry(each) for each in good])
            return state

    def _entry(self, result: Result) -> UsageEntry:
        return UsageEntry(
            id=result.request_id,
            project_id=self.project,
            kind="completion",
            model=result.model or "",
            base_model=result.base_model,
            key_id=self.batch.key_id,
            prompt_tokens=result.usage.prompt_tokens,
            completion_tokens=result.usage.completion_tokens,
        )
