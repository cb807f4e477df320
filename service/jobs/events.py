"""The history of a job. Sequence numbers are taken under the job's row lock, so a reader never misses an event."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from service.contracts.ids import new_event_id
from service.contracts.worker import Event
from service.jobs.models import EventRow, JobRow
from service.notifications import notify


@dataclass(frozen=True)
class Note:
    """An event that the service itself writes."""

    message: str
    level: Literal["info", "warn", "error"] = "info"
    data: dict[str, Any] = field(default_factory=dict[str, Any])


async def write(session: AsyncSession, job: JobRow, *notes: Note) -> None:
    """Appends events of the service. The caller holds the lock on the job's row."""
    for note in notes:
        _append(session, job, Event(id=new_event_id(), level=note.level, message=note.message, data=note.data))
    await _told(session, job)


async def merge(session: AsyncSession, job: JobRow, events: Iterable[Event]) -> None:
    """Takes in a worker's events. An id repeated under a newer epoch is replaced, so a replayed step shows once.

    The caller holds the lock on the job's row.
    """
    latest = {event.id: event for event in events}
    if not latest:
        return
    query = select(EventRow).where(EventRow.job_id == job.id, EventRow.id.in_(latest))
    known = {row.id: row for row in await session.scalars(query)}
    for event in latest.values():
        row = known.get(event.id)
        if row is None:
            _append(session, job, event)
        elif row.epoch < job.epoch:
            row.epoch, row.level, row.type = job.epoch, event.level, event.type
            row.message, row.data = storable(event.message), storable(event.data)
    await _told(session, job)


async def _told(session: AsyncSession, job: JobRow) -> None:
    await session.flush()
    await notify(session, "job", job.id)


def _append(session: AsyncSession, job: JobRow, event: Event) -> None:
    job.event_seq += 1
    session.add(
        EventRow(
            project_id=job.project_id,
            job_id=job.id,
            seq=job.event_seq,
            id=event.id,
            epoch=job.epoch,
            level=event.level,
            type=event.type,
            message=storable(event.message),
            data=storable(event.data),
        )
    )


def storable(value: Any) -> Any:
    """The value as PostgreSQL can hold it: a loss may be NaN, and an error may quote any bytes of a training file."""
    match value:
        case str():
            return value.replace("\0", "\ufffd").encode(errors="replace").decode()
        case float() if not math.isfinite(value):
            return None
        case dict():
            pairs = cast("dict[str, Any]", value).items()
            return {storable(key): storable(item) for key, item in pairs}
        case list() | tuple():
            return [storable(item) for item in cast("list[Any]", value)]
        case _:
            return value
