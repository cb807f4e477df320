"""Pages of jobs, their events and their checkpoint models, newest first; `after` is the last id of the page before."""

import re
from collections.abc import Sequence

from fastapi import Request
from sqlalchemy import select

from service.adapters.models import ModelRow
from service.db import TenantSession
from service.errors import InvalidRequest
from service.jobs.models import EventRow, JobRow
from service.listing import Cursor, rows_of

METADATA_PARAMETER = re.compile(r"^metadata\[(.*)\]$", re.DOTALL)


def metadata_filter(request: Request) -> dict[str, str] | None:
    """The pairs of `metadata[key]=value`; an empty dict for `metadata=null`, that is jobs without metadata."""
    pairs = {
        match[1]: value for name, value in request.query_params.items() if (match := METADATA_PARAMETER.match(name))
    }
    if "metadata" not in request.query_params:
        return pairs or None
    if request.query_params["metadata"] != "null" or pairs:
        raise InvalidRequest("Filter with 'metadata[key]=value' or with 'metadata=null'.", param="metadata")
    return {}


async def list_jobs(session: TenantSession, cursor: Cursor, metadata: dict[str, str] | None) -> Sequence[JobRow]:
    """A page and one row more where another follows."""
    own = JobRow.project_id == session.project_id
    query = select(JobRow).where(own)
    if metadata is not None:
        query = query.where(JobRow.job_metadata.contains(metadata) if metadata else JobRow.job_metadata == {})
    begin = select(JobRow.created_at, JobRow.id).where(own, JobRow.id == cursor.after)
    return await rows_of(session, query, (JobRow.created_at, JobRow.id), cursor, begin)


async def list_events(session: TenantSession, job: JobRow, cursor: Cursor) -> Sequence[EventRow]:
    """A page and one row more where another follows. Events are in the order of their sequence numbers."""
    query = select(EventRow).where(EventRow.project_id == session.project_id, EventRow.job_id == job.id)
    if cursor.after is not None:
        seq = await session.scalar(query.where(EventRow.id == cursor.after).with_only_columns(EventRow.seq))
        if seq is None:
            raise InvalidRequest("No object with the id given as 'after'.", param="after")
        query = query.where(EventRow.seq < seq)
    return (await session.scalars(query.order_by(EventRow.seq.desc()).limit(cursor.limit + 1))).all()


async def list_checkpoints(session: TenantSession, job: JobRow, cursor: Cursor) -> Sequence[ModelRow]:
    """A page and one row more where another follows. The cursor's own model may be retired by now."""
    query = select(ModelRow).where(
        ModelRow.project_id == session.project_id, ModelRow.job_id == job.id, ModelRow.kind == "checkpoint"
    )
    if cursor.after is not None:
        step = await session.scalar(
            query.where(ModelRow.checkpoint_id == cursor.after).with_only_columns(ModelRow.step)
        )
        if step is None:
            raise InvalidRequest("No object with the id given as 'after'.", param="after")
        query = query.where(ModelRow.step < step)
    live = query.where(ModelRow.deleted_at.is_(None)).order_by(ModelRow.step.desc())
    return (await session.scalars(live.limit(cursor.limit + 1))).all()
