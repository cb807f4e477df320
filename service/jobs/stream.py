"""A job's events as they happen: server-sent events from any event on, until the job has ended.

A notification wakes a stream, a look each POLL_SECONDS stands in for lost ones. Between looks a stream holds no
connection of the database, and it reads the next batch only when the client has taken the last. Ids are the events'
sequence numbers, so a client that was cut off, as all are when the process is to end, goes on with `Last-Event-ID`,
whichever process it finds.
"""

import asyncio
import re
import time
from collections import Counter
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from dataclasses import dataclass

from fastapi import Request
from sqlalchemy import select

from service.contracts.ids import ProjectId
from service.contracts.job import TERMINAL
from service.db import DatabaseUnavailable, TenantSession
from service.errors import InvalidRequest, RateLimited, Unauthenticated
from service.jobs import lifecycle
from service.jobs.models import EventRow, JobRow
from service.jobs.views import event_object
from service.resources import Resources
from service.tenants.auth import proved_tenant

BATCH = 100
POLL_SECONDS = 5.0
KEEP_ALIVE_SECONDS = 15.0
# One newline: after an id was sent, OpenAI's client takes every blank line for the end of an event.
KEEP_ALIVE = ": keep-alive\n"
END = "event: done\ndata: [DONE]\n\n"
HEADERS = {"content-type": "text/event-stream", "cache-control": "no-store", "x-accel-buffering": "no"}
SEQUENCE = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True)
class Place:
    """Where a stream goes on: behind the event with this sequence number."""

    project: ProjectId
    job_id: str
    seq: int


def refuse_too_many(request: Request, resources: Resources, project: ProjectId) -> None:
    """Raises RateLimited where the project holds as many streams of this process as it may."""
    limit = resources.settings.max_project_event_streams
    if _open_streams(request)[project] >= limit:
        raise RateLimited(
            f"This project has {limit} streams of job events open here; close one first.", code="too_many_streams"
        )


def _open_streams(request: Request) -> Counter[str]:
    return request.app.state.event_streams


async def place(session: TenantSession, job_id: str, after: str | None, last_event_id: str | None) -> Place:
    """`Last-Event-ID` goes before `after`: a browser that reconnects repeats its first address. Raises NotFound."""
    job = await lifecycle.find(session, job_id)
    return Place(session.project_id, job.id, await _sequence(session, job, after, last_event_id))


async def _sequence(session: TenantSession, job: JobRow, after: str | None, last_event_id: str | None) -> int:
    if last_event_id:
        if not SEQUENCE.fullmatch(last_event_id):
            raise InvalidRequest(
                "'Last-Event-ID' is not an id of this stream; send the last 'id:' that you have received.",
                param="Last-Event-ID",
            )
        return int(last_event_id)
    if after is None:
        return 0
    named = select(EventRow.seq).where(EventRow.job_id == job.id, EventRow.id == after)
    seq = await session.scalar(named)
    if seq is None:
        raise InvalidRequest("No object with the id given as 'after'.", param="after")
    return seq


async def follow(request: Request, resources: Resources, begin: Place) -> AsyncGenerator[str]:
    """Ends with END when the job has ended, and without it when the caller's key has, or this process."""
    seq, spoken = begin.seq, time.monotonic()
    with _counted(request, begin.project), resources.notifications.watch("job", begin.job_id) as changed:
        while True:
            changed.clear()
            ended, events = await _read(resources, begin, seq)
            for event in events:
                yield _framed(event)
                seq, spoken = event.seq, time.monotonic()
            if len(events) == BATCH:
                continue
            if ended:
                yield END
                return
            if resources.ending.is_set() or not await _still_welcome(request):
                return
            if time.monotonic() - spoken > KEEP_ALIVE_SECONDS - POLL_SECONDS:
                yield KEEP_ALIVE
                spoken = time.monotonic()
            await _woken(changed, resources.ending)


@contextmanager
def _counted(request: Request, project: ProjectId) -> Generator[None]:
    streams = _open_streams(request)
    streams[project] += 1
    try:
        yield
    finally:
        streams[project] -= 1
        if not streams[project]:
            del streams[project]


async def _read(resources: Resources, begin: Place, seq: int) -> tuple[bool, list[EventRow]]:
    """The state is read first: of a job that has ended the events are all there. An outage only delays."""
    query = select(EventRow).where(EventRow.project_id == begin.project, EventRow.job_id == begin.job_id)
    try:
        async with resources.database.tenant(begin.project) as session:
            status = await session.scalar(select(JobRow.status).where(JobRow.id == begin.job_id))
            rows = await session.scalars(query.where(EventRow.seq > seq).order_by(EventRow.seq).limit(BATCH))
            return status in TERMINAL, list(rows)
    except DatabaseUnavailable:
        return False, []


async def _still_welcome(request: Request) -> bool:
    """A stream lives for hours; a revoked key ends it as it ends everything else."""
    try:
        await proved_tenant(request)
    except Unauthenticated:
        return False
    except DatabaseUnavailable:
        return True
    return True


async def _woken(*events: asyncio.Event) -> None:
    """Returns when one of them is set, and after POLL_SECONDS."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


def _framed(event: EventRow) -> str:
    shown = event_object(event)
    return f"id: {event.seq}\nevent: {shown.object}\ndata: {shown.model_dump_json()}\n\n"
