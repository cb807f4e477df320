"""A finished job's model as the next version of the registered adapter that the job was made for, and what follows."""

from service.contracts.ids import AdapterId, ProjectId
from service.db import ControlSession
from service.errors import ApiError
from service.jobs.events import Note
from service.jobs.models import JobRow
from service.registry import evaluations, sources, versions
from service.registry.models import EvaluationRow
from service.registry.versions import Source


async def register(session: ControlSession, job: JobRow, artifact: AdapterId) -> tuple[Note, ...]:
    """In the transaction of the success. What has become of the adapter meanwhile must not undo it: the job has its
    model anyhow, and its history says why that is no version.
    """
    if job.adapter is None:
        return ()
    made = await sources.made_by(session, job, artifact, Source("job", job.id))
    try:
        async with session.begin_nested():
            row = await versions.add(
                session,
                ProjectId(job.project_id),
                job.adapter,
                made.source,
                artifact=artifact,
                provenance=made.provenance,
                evaluation=made.evaluation,
                create_missing=True,
                gated=gate["alias"] if (gate := job.on_success) else None,
            )
            evaluation = await evaluations.after_job(session, job, row)
    except ApiError as error:
        return (Note(f"The model was not added to adapter '{job.adapter}': {error.message}", "warn"),)
    added = Note(f"New version of adapter '{job.adapter}': v{row.number}")
    return (added, evaluating(evaluation)) if evaluation else (added,)


def evaluating(evaluation: EvaluationRow) -> Note:
    return Note(
        f"Evaluating v{evaluation.version} before it may become '{evaluation.alias}'",
        data={"evaluation_id": evaluation.id},
    )
