"""Writing and summing the usage ledger. Rows are only ever added; what is billed to whom is the callers' decision."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, cast

from sqlalchemy import DateTime, Table, bindparam, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from service.contracts.ids import ProjectId
from service.db import ControlSession
from service.usage.models import UsageRow


@dataclass(frozen=True)
class UsageEntry:
    """One booking. `id` is a request id, or `training_id(...)`: a second entry of the same id is never booked."""

    id: str
    project_id: str
    kind: Literal["completion", "training"]
    model: str
    key_id: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    trained_tokens: int = 0
    created_at: datetime | None = None
    """When it was used; None means when it is booked, by the database's clock."""


@dataclass(frozen=True)
class UsageTotals:
    requests: int
    prompt_tokens: int
    completion_tokens: int
    trained_tokens: int


def training_id(job_id: str, epoch: int) -> str:
    return f"{job_id}:{epoch}"


async def record(session: ControlSession, rows: Sequence[UsageEntry]) -> None:
    """Books what is not booked yet, so that a spool may be replayed from any point."""
    if rows:
        when = func.coalesce(bindparam("used_at", type_=DateTime(timezone=True)), func.now())
        statement = (
            insert(cast("Table", UsageRow.__table__))
            .values(created_at=when)
            .on_conflict_do_nothing(index_elements=["id"])
        )
        await session.execute(statement, [_parameters(row) for row in rows])


def _parameters(row: UsageEntry) -> dict[str, Any]:
    # Not asdict: it copies deeply, which cost more than all the rest of booking a row.
    values = dict(vars(row))
    values["used_at"] = values.pop("created_at")
    return values


async def totals(session: AsyncSession, project: ProjectId, since: datetime, until: datetime) -> UsageTotals:
    """What one project used in `[since, until)`; `requests` counts completions only."""
    query = select(
        func.count().filter(UsageRow.kind == "completion"),
        func.coalesce(func.sum(UsageRow.prompt_tokens), 0),
        func.coalesce(func.sum(UsageRow.completion_tokens), 0),
        func.coalesce(func.sum(UsageRow.trained_tokens), 0),
    ).where(UsageRow.project_id == project, UsageRow.created_at >= since, UsageRow.created_at < until)
    return UsageTotals(*(int(number) for number in (await session.execute(query)).one()))
