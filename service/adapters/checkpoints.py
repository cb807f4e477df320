"""Checkpoint models: adapters of a job's steps under names of their own. Publishing them and ending the older ones.

The caller holds the lock on the job's row, so a job's checkpoint models change one after the other. A name that has
ended, by its owner or by `thin_out`, stays so: a job that trains the same step again does not bring it back.
"""

import contextlib

from sqlalchemy import select, update

from service.adapters import registry
from service.adapters.models import ModelRow
from service.adapters.registry import Trained
from service.contracts.ids import AdapterId, JobId, ProjectId, new_checkpoint_id
from service.contracts.worker import CheckpointMetrics
from service.db import ControlSession
from service.notifications import notify

KEPT = 3
"""As many as OpenAI keeps; the best one stays beside them."""


async def publish(session: ControlSession, trained: Trained, name: str, metrics: CheckpointMetrics) -> str | None:
    """Registers the model of one step; gives its id where its name is new. A live name gets the newer adapter."""
    query = select(ModelRow).where(ModelRow.name == name)
    before = await session.scalar(query.execution_options(populate_existing=True))
    checkpoint_id: str | None = None
    if before is None:
        checkpoint_id = await _insert(session, trained, name, metrics)
    elif before.deleted_at is None:
        await _replace(session, trained, name, metrics, AdapterId(before.adapter_id))
    await notify(session, "model")
    return checkpoint_id


async def thin_out(session: ControlSession, project: ProjectId, job: JobId) -> None:
    """Ends all models of a job but the newest and the one of the lowest validation loss."""
    live = select(ModelRow).where(ModelRow.job_id == job, ModelRow.kind == "checkpoint", ModelRow.deleted_at.is_(None))
    models = (await session.scalars(live.order_by(ModelRow.step.desc()))).all()
    # The earliest of equals comes first.
    losses = {model.name: (model.metrics or {}).get("full_valid_loss") for model in reversed(models)}
    measured = {name: loss for name, loss in losses.items() if loss is not None}
    best = min(measured, key=measured.__getitem__, default=None)
    for model in models[KEPT:]:
        if model.name != best:
            # Its owner may have been quicker.
            with contextlib.suppress(LookupError):
                await registry.retire(session, project, model.name)


async def _insert(session: ControlSession, trained: Trained, name: str, metrics: CheckpointMetrics) -> str:
    adapter_id, checkpoint_id = await registry.enter(session, trained), new_checkpoint_id()
    session.add(
        ModelRow(
            name=name,
            project_id=trained.project_id,
            adapter_id=adapter_id,
            job_id=trained.job_id,
            kind="checkpoint",
            checkpoint_id=checkpoint_id,
            step=metrics.step,
            metrics=metrics.model_dump(mode="json"),
        )
    )
    await session.flush()
    return checkpoint_id


async def _replace(
    session: ControlSession, trained: Trained, name: str, metrics: CheckpointMetrics, previous: AdapterId
) -> None:
    adapter_id = await registry.enter(session, trained)
    # Its owner may have deleted it since it was read.
    live = update(ModelRow).where(ModelRow.name == name, ModelRow.deleted_at.is_(None))
    await session.execute(live.values(adapter_id=adapter_id, metrics=metrics.model_dump(mode="json")))
    for unused in {adapter_id, previous}:
        await registry.release(session, unused)
