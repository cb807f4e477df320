"""Usage and costs of the whole organization, in buckets of time. Reads the ledger and what projects have stored."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Select, func, literal, select, text
from sqlalchemy.dialects.postgresql import INTERVAL
from sqlalchemy.orm import InstrumentedAttribute

from service.db import ControlSession
from service.usage.models import PRICED, UsageRow

ORIGIN = datetime(1970, 1, 1, tzinfo=UTC)
COLUMNS: dict[str, InstrumentedAttribute[Any]] = {
    "project_id": UsageRow.project_id,
    "api_key_id": UsageRow.key_id,
    "model": UsageRow.model,
}

# Text, because files lie above this package. A file takes room from its creation until its bytes are gone.
STORED = text(
    """
    select begin, project_id, sum(bytes * extract(epoch from
        least(ended, begin + :width, now()) - greatest(created_at, begin))) as byte_seconds
    from (
      select project_id, bytes, created_at, coalesce(purged_at, 'infinity') as ended from files
      where cast(:projects as text[]) is null or project_id = any(:projects)
    ) as kept
    join generate_series(cast(:since as timestamptz), cast(:until as timestamptz) - interval '1 microsecond', :width)
      as begin on created_at < least(begin + :width, now()) and ended > begin
    group by begin, project_id order by begin, project_id
    """
)


@dataclass(frozen=True)
class Range:
    """Whole buckets: `since` is the first one's begin, `until` the last one's end."""

    since: datetime
    until: datetime
    width: timedelta

    @classmethod
    def of(cls, start: int, end: int, width: timedelta, most: int) -> "Range":
        """The first `most` buckets of the time from `start` to `end`."""
        seconds = int(width.total_seconds())
        first = start // seconds * seconds
        last = min(-(-max(end, start + 1) // seconds) * seconds, first + most * seconds)
        return cls(datetime.fromtimestamp(first, UTC), datetime.fromtimestamp(last, UTC), width)

    def begins(self) -> list[datetime]:
        count = int((self.until - self.since) / self.width)
        return [self.since + number * self.width for number in range(count)]


@dataclass(frozen=True)
class Wanted:
    """None stands for all. `group_by` are names of COLUMNS; models are told apart by price alone where it says so."""

    project_ids: list[str] | None = None
    api_key_ids: list[str] | None = None
    models: list[str] | None = None
    group_by: tuple[str, ...] = ()
    priced: bool = False


@dataclass(frozen=True)
class Group:
    """What is None was not grouped by, or the ledger does not say it."""

    project_id: str | None = None
    api_key_id: str | None = None
    model: str | None = None


@dataclass(frozen=True)
class Used:
    begin: datetime
    group: Group
    requests: int
    prompt_tokens: int
    completion_tokens: int
    trained_tokens: int


@dataclass(frozen=True)
class Stored:
    begin: datetime
    project_id: str
    byte_seconds: float


async def used(session: ControlSession, kind: str | None, span: Range, wanted: Wanted) -> list[Used]:
    """What the ledger has of `kind`, or of every kind, by bucket and group."""
    rows = (await session.execute(_query(kind, span, wanted))).all()
    found: list[Used] = []
    for begin, *rest in rows:
        group = Group(**dict(zip(wanted.group_by, rest, strict=False)))
        requests, prompt, completion, trained = (int(number) for number in rest[len(wanted.group_by) :])
        found.append(Used(begin, group, requests, prompt, completion, trained))
    return found


async def stored(session: ControlSession, span: Range, projects: Sequence[str] | None) -> list[Stored]:
    """Bytes times seconds of each project's files, by bucket."""
    parameters = {
        "projects": None if projects is None else list(projects),
        "since": span.since,
        "until": span.until,
        "width": span.width,
    }
    rows = (await session.execute(STORED, parameters)).all()
    return [Stored(begin, project, float(amount)) for begin, project, amount in rows]


def _query(kind: str | None, span: Range, wanted: Wanted) -> Select[Any]:
    begin = func.date_bin(literal(span.width, INTERVAL), UsageRow.created_at, ORIGIN).label("begin")
    groups = [PRICED if wanted.priced and name == "model" else COLUMNS[name] for name in wanted.group_by]
    query = select(
        begin,
        *groups,
        func.count(),
        func.sum(UsageRow.prompt_tokens),
        func.sum(UsageRow.completion_tokens),
        func.sum(UsageRow.trained_tokens),
    ).where(UsageRow.created_at >= span.since, UsageRow.created_at < span.until)
    if kind is not None:
        query = query.where(UsageRow.kind == kind)
    for column, only in (
        (UsageRow.project_id, wanted.project_ids),
        (UsageRow.key_id, wanted.api_key_ids),
        (UsageRow.model, wanted.models),
    ):
        if only is not None:
            query = query.where(column.in_(only))
    return query.group_by(begin, *groups).order_by(begin, *groups)
