"""Writing and summing the usage ledger. Rows are only ever added; what is billed to whom is the callers' decision."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Literal, cast

from sqlalchemy import ARRAY, Table, bindparam, column, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from service.contracts.ids import ProjectId
from service.db import ControlSession
from service.usage.models import UsageRow


@dataclass(frozen=True)
class UsageEntry:
    """One booking. `id` is a request id, or `training_id(...)`: a second entry of the same id is never booked.

    `base_model` is needed where `model` does not say it, and `shadow` means a copy of a request, which has no key.
    """

    id: str
    project_id: str
    kind: Literal["completion", "training"]
    model: str
    key_id: str | None = None
    base_model: str | None = None
    shadow: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    trained_tokens: int = 0
    created_at: datetime | None = None
    """When it was used; None means when it is booked, by the database's clock."""


NAMES = [field.name for field in fields(UsageEntry)]
_usage = cast("Table", UsageRow.__table__)
_given = (
    func.unnest(*(bindparam(name, type_=ARRAY(_usage.c[name].type)) for name in NAMES))
    .table_valued(*(column(name, _usage.c[name].type) for name in NAMES), name="given")
    .render_derived()
)
_when = func.coalesce(_given.c.created_at, func.now())
BOOK = (
    insert(_usage)
    .from_select(NAMES, select(*(_when if name == "created_at" else _given.c[name] for name in NAMES)))
    .on_conflict_do_nothing(index_elements=["id"])
)
"""One statement with a list for each column: a row of parameters for each entry takes ten times as long to send."""


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
        await session.execute(BOOK, {name: [getattr(row, name) for row in rows] for name in NAMES})


async def totals(session: AsyncSession, project: ProjectId, since: datetime, until: datetime) -> UsageTotals:
    """What one project used in `[since, until)`; `requests` counts completions only."""
    query = select(
        func.count().filter(UsageRow.kind == "completion"),
        func.coalesce(func.sum(UsageRow.prompt_tokens), 0),
        func.coalesce(func.sum(UsageRow.completion_tokens), 0),
        func.coalesce(func.sum(UsageRow.trained_tokens), 0),
    ).where(UsageRow.project_id == project, UsageRow.created_at >= since, UsageRow.created_at < until)
    return UsageTotals(*(int(number) for number in (await session.execute(query)).one()))
