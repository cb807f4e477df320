"""Asking for evaluations, and finding them. They are worked on in `service.promotions`."""

from collections.abc import Collection, Sequence

from sqlalchemy import func, select

from service.adapters.models import RegisteredRow, VersionRow
from service.contracts.ids import new_evaluation_id
from service.db import ControlSession, TenantSession
from service.errors import NotFound, RateLimited
from service.jobs import gates
from service.jobs.datafiles import usable
from service.jobs.graders import Grader, OnSuccess, dumped
from service.jobs.models import JobRow
from service.limits.spend import require_unreserved
from service.listing import Cursor, rows_of
from service.registry import catalog, versions
from service.registry.models import EvaluationRow
from service.resources import Resources
from service.tenants import audit

MOST_OPEN = 20
"""Of a project, asked for by keys; those of jobs are as many as its jobs."""


async def after_job(session: ControlSession, job: JobRow, version: VersionRow) -> EvaluationRow | None:
    """The evaluation that the job's owner wanted, in the transaction of its success."""
    if job.on_success is None:
        return None
    gate = OnSuccess.model_validate(job.on_success)
    row = EvaluationRow(
        id=new_evaluation_id(),
        project_id=job.project_id,
        registered_id=version.registered_id,
        version=version.number,
        job_id=job.id,
        file_id=gate.evaluation.file_id or job.validation_file,
        grader=dumped(gate.evaluation.grader),
        alias=gate.alias,
        min_score=gate.min_score,
        must_beat_current=gate.must_beat_current,
    )
    session.add(row)
    await session.flush()
    return row


async def create(
    session: TenantSession, resources: Resources, key_id: str, name: str, number: int, file_id: str, grader: Grader
) -> tuple[RegisteredRow, EvaluationRow]:
    """Queues an evaluation that decides nothing."""
    registered = await catalog.find(session, name)
    version = await versions.find(session, registered, number)
    file = await usable(session, file_id, "file_id")
    await gates.check_grader(session, resources, grader, "grader")
    await require_unreserved(session, resources.settings)
    await _require_room(session)
    row = EvaluationRow(
        id=new_evaluation_id(),
        project_id=session.project_id,
        registered_id=registered.id,
        version=version.number,
        key_id=key_id,
        file_id=file.id,
        grader=dumped(grader),
    )
    session.add(row)
    await session.flush()
    await session.refresh(row)
    await audit.note(session, "adapter.evaluation.created", row.id, adapter=name, version=number)
    return registered, row


async def find(session: TenantSession, name: str, evaluation: str) -> tuple[RegisteredRow, EvaluationRow]:
    """Raises NotFound for an unknown one, a foreign one and one of another adapter alike."""
    registered = await catalog.find(session, name)
    own = select(EvaluationRow).where(EvaluationRow.id == evaluation, EvaluationRow.registered_id == registered.id)
    row = await session.scalar(own)
    if row is None:
        raise NotFound(
            f"The adapter '{name}' has no evaluation '{evaluation[:64]}'.",
            code="evaluation_not_found",
            param="evaluation_id",
        )
    return registered, row


async def list_evaluations(
    session: TenantSession, registered: RegisteredRow, cursor: Cursor
) -> Sequence[EvaluationRow]:
    columns = (EvaluationRow.created_at, EvaluationRow.id)
    own = select(EvaluationRow).where(EvaluationRow.registered_id == registered.id)
    begin = own.with_only_columns(*columns).where(EvaluationRow.id == cursor.after)
    return await rows_of(session, own, columns, cursor, begin)


async def of_versions(
    session: TenantSession, registered: str, numbers: Collection[int], most: int
) -> dict[int, list[EvaluationRow]]:
    """What measured these versions of an adapter: by version the newest `most` evaluations that succeeded."""
    newest = func.row_number().over(
        partition_by=EvaluationRow.version, order_by=(EvaluationRow.created_at.desc(), EvaluationRow.id.desc())
    )
    own = select(EvaluationRow.id, newest.label("place")).where(
        EvaluationRow.registered_id == registered,
        EvaluationRow.version.in_(numbers),
        EvaluationRow.status == "succeeded",
    )
    ranked = own.subquery()
    query = select(EvaluationRow).join(ranked, ranked.c.id == EvaluationRow.id).where(ranked.c.place <= most)
    found: dict[int, list[EvaluationRow]] = {number: [] for number in numbers}
    for row in await session.scalars(query.order_by(ranked.c.place)):
        found[row.version].append(row)
    return found


async def _require_room(session: TenantSession) -> None:
    lock = func.pg_advisory_xact_lock(func.hashtextextended("evaluations " + session.project_id, 0))
    await session.execute(select(lock))
    unfinished = EvaluationRow.finished_at.is_(None), EvaluationRow.job_id.is_(None)
    count = select(func.count()).where(EvaluationRow.project_id == session.project_id, *unfinished)
    if (await session.scalar(count) or 0) >= MOST_OPEN:
        raise RateLimited(
            f"This project has {MOST_OPEN} evaluations under way, as many as it may; wait for one to end.",
            code="too_many_evaluations",
        )
