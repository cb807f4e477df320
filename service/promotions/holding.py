"""Who works on which evaluation: claims, renewals, and what a holder writes under its epoch.

Scores are recorded in one transaction with what they cost, and only by the holder. So whatever dies or doubles, each
line counts once; a line whose score was not recorded is asked again.
"""

import asyncio
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from service.contracts.ids import ProjectId
from service.db import DatabaseUnavailable
from service.registry.models import EvaluationRow, ScoreRow
from service.resources import Resources
from service.tenants.models import ProjectRow
from service.usage import ledger
from service.usage.ledger import UsageEntry

HELD = timedelta(seconds=30)
RENEW_SECONDS = 5.0

log = logging.getLogger("service.promotions")


class Lost(Exception):
    """Somebody else holds the evaluation by now."""


@dataclass(frozen=True, slots=True)
class Scored:
    """One line's score under one version, and the requests that led to it."""

    version: int
    line: int
    score: float
    weight: float
    problem: str | None
    cost: tuple[UsageEntry, ...]


async def claim(resources: Resources, busy: Collection[str]) -> EvaluationRow | None:
    """The evaluation that was worked on least lately, of a project that is not `busy` here."""
    active = select(ProjectRow.id).where(ProjectRow.status == "active")
    held = EvaluationRow.held_until
    waiting = EvaluationRow.finished_at.is_(None), (held.is_(None)) | (held < func.now())
    query = select(EvaluationRow.id).where(
        *waiting, EvaluationRow.project_id.in_(active), EvaluationRow.project_id.not_in(busy)
    )
    oldest = query.order_by(held.asc().nulls_first(), EvaluationRow.created_at).limit(1)
    first = oldest.with_for_update(skip_locked=True).scalar_subquery()
    values = {"held_until": func.now() + HELD, "epoch": EvaluationRow.epoch + 1}
    claimed = update(EvaluationRow).where(EvaluationRow.id == first).values(values).returning(EvaluationRow)
    async with resources.database.control() as session:
        return await session.scalar(claimed)


class Holding:
    """A claimed evaluation, from its holder's side."""

    def __init__(self, resources: Resources, row: EvaluationRow) -> None:
        self._resources = resources
        self.row = row
        self.project = ProjectId(row.project_id)

    async def keep(self) -> None:
        """Renews until the evaluation is lost; returns then."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            try:
                async with self._resources.database.control() as session:
                    await self.change(session, held_until=func.now() + HELD)
            except Lost:
                return
            except DatabaseUnavailable as error:
                log.warning("evaluation %s is not held for the moment: %s", self.row.id, error)

    async def give_back(self, delay: timedelta) -> None:
        """Lets others have it, after a while."""
        async with self._resources.database.control() as session:
            await self.change(session, held_until=func.now() + delay)

    async def change(self, session: AsyncSession, **values: Any) -> None:
        """Writes to the evaluation's row. Raises Lost, also where it has ended."""
        own = update(EvaluationRow).where(
            EvaluationRow.id == self.row.id,
            EvaluationRow.epoch == self.row.epoch,
            EvaluationRow.finished_at.is_(None),
        )
        if await session.scalar(own.values(values).returning(EvaluationRow.id)) is None:
            raise Lost

    async def scores(self) -> Sequence[ScoreRow]:
        """What is recorded, by line."""
        query = select(ScoreRow).where(ScoreRow.evaluation_id == self.row.id)
        async with self._resources.database.control() as session:
            return (await session.scalars(query.order_by(ScoreRow.line, ScoreRow.version))).all()

    async def record(self, scored: Sequence[Scored]) -> None:
        """Books and keeps the scores. Raises Lost, and then nothing of it counts."""
        async with self._resources.database.control() as session:
            await self.change(session, held_until=func.now() + HELD)
            session.add_all(
                ScoreRow(
                    evaluation_id=self.row.id,
                    version=each.version,
                    line=each.line,
                    project_id=self.project,
                    score=each.score,
                    weight=each.weight,
                    problem=each.problem,
                )
                for each in scored
            )
            await ledger.record(session, [entry for each in scored for entry in each.cost])
