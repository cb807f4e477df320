"""The end of an evaluation: its scores, whether the version takes the alias over, and all that tells of it, at once.

The alias is changed by compare and set against the revision that the evaluation began with: whatever somebody did to it
meanwhile stays as they left it. What other evaluations did to it is no such word: against that it is compared again.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, select

from service.adapters.models import AliasChangeRow, RegisteredRow
from service.contracts.ids import ProjectId
from service.db import ControlSession
from service.errors import ApiError
from service.jobs import events, lifecycle
from service.jobs.events import Note
from service.jobs.models import JobRow
from service.promotions.holding import Holding
from service.registry import promote
from service.registry.history import SERVICE
from service.registry.models import EvaluationRow, ScoreRow
from service.resources import Resources
from service.webhooks import outbox

MOST_ROUNDS = 5
"""So often an evaluation begins to compare; by then its alias changes too often to be decided on."""


class Overtaken(Exception):
    """Other evaluations have moved the alias since this one began to compare."""


@dataclass(frozen=True)
class Measured:
    score: float
    current_score: float | None
    results: dict[str, Any]


async def conclude(resources: Resources, holding: Holding, measured: Measured) -> None:
    """Ends an evaluation that could be made. Raises Lost or Overtaken, and then nothing of it has happened."""
    row = holding.row
    async with resources.database.control() as session:
        # Jobs are locked before adapters, everywhere.
        job = await lifecycle.lock(session, row.job_id) if row.job_id else None
        refusal = None
        if row.alias is not None:
            refusal = why_not(row, measured) or await _promoted(session, row, row.alias, measured)
        values = {"score": measured.score, "current_score": measured.current_score, "results": measured.results}
        await _end(session, holding, job, _note(row, measured, refusal), refusal, status="succeeded", **values)


async def fail(resources: Resources, holding: Holding, problem: ApiError) -> None:
    """Ends an evaluation that could not be made. Its alias stays as it is."""
    row = holding.row
    error = {"code": problem.code or "evaluation_failed", "message": events.storable(problem.message)}
    refusal = f"Its evaluation failed: {error['message']}"
    note = Note(f"v{row.version} was not promoted to '{row.alias}': {refusal}", "warn", {"evaluation_id": row.id})
    async with resources.database.control() as session:
        job = await lifecycle.lock(session, row.job_id) if row.job_id else None
        await _end(session, holding, job, note, refusal, status="failed", error=error)


async def _end(
    session: ControlSession, holding: Holding, job: JobRow | None, note: Note, refusal: str | None, **values: Any
) -> None:
    row = holding.row
    if row.alias is not None:
        values |= {"promoted": refusal is None, "reason": refusal}
    await holding.change(session, finished_at=func.clock_timestamp(), held_until=None, **values)
    await session.execute(delete(ScoreRow).where(ScoreRow.evaluation_id == row.id))
    if job is not None:
        await events.write(session, job, note)
    if refusal is not None and row.alias is not None:
        told = {"id": row.registered_id, "adapter": await _adapter(session, row), "alias": row.alias}
        about = {"version": row.version, "evaluation_id": row.id}
        await outbox.emit(session, row.project_id, "adapter.promotion_refused", told | about)


async def _promoted(session: ControlSession, row: EvaluationRow, alias: str, measured: Measured) -> str | None:
    """Why it could not be after all, or None where it was."""
    reason = f"Evaluation {row.id}: {_scores(row, measured)}"
    try:
        async with session.begin_nested():
            await promote.promote(
                session,
                ProjectId(row.project_id),
                await _adapter(session, row),
                alias,
                row.version,
                if_revision=row.revision,
                actor=SERVICE,
                reason=reason,
                evaluation_id=row.id,
            )
    except ApiError as error:
        if error.code == "revision_mismatch" and row.rounds < MOST_ROUNDS and await _overtaken(session, row):
            raise Overtaken from error
        return error.message
    return None


async def _overtaken(session: ControlSession, row: EvaluationRow) -> bool:
    """Whether nobody has decided on the alias since but evaluations."""
    since = select(AliasChangeRow.action, AliasChangeRow.actor).where(
        AliasChangeRow.registered_id == row.registered_id,
        AliasChangeRow.alias == row.alias,
        AliasChangeRow.revision > row.revision,
    )
    changes = (await session.execute(since)).all()
    return all(action == "update" or (action, actor) == ("promote", SERVICE) for action, actor in changes)


async def _adapter(session: ControlSession, row: EvaluationRow) -> str:
    return (await session.scalars(select(RegisteredRow.name).where(RegisteredRow.id == row.registered_id))).one()


def why_not(row: EvaluationRow, measured: Measured) -> str | None:
    """Why the version may not take the alias over; None where it may."""
    score, current, lower = measured.score, measured.current_score, row.grader["type"] == "loss"
    if row.current_version == row.version:
        return "The alias stands for it already."
    if row.min_score is not None and score < row.min_score:
        return f"Its score {score:.4g} is below the {row.min_score:.4g} that it needs."
    if not row.must_beat_current or row.current_version is None or current is None:
        return None
    if score < current if lower else score > current:
        return None
    what = "loss" if lower else "score"
    return f"Its {what} {score:.4g} does not beat the {current:.4g} of v{row.current_version}."


def _scores(row: EvaluationRow, measured: Measured) -> str:
    against = (
        f" against {measured.current_score:.4g} of v{row.current_version}" if measured.current_score is not None else ""
    )
    return f"{row.grader['type']} {measured.score:.4g}{against}"


def _note(row: EvaluationRow, measured: Measured, refusal: str | None) -> Note:
    data = {
        "evaluation_id": row.id,
        "score": measured.score,
        "current_score": measured.current_score,
        "promoted": refusal is None,
    }
    if refusal is not None:
        return Note(f"v{row.version} was not promoted to '{row.alias}': {refusal}", "warn", data)
    return Note(f"v{row.version} was promoted to '{row.alias}': {_scores(row, measured)}", data=data)
