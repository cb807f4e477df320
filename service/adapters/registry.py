"""Which model names exist and which adapter each points at: publishing, finding and retiring them.

Adapters are immutable and named by content; names are what tenants see. The bytes are verified by whoever publishes.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, exists, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from service.adapters.aliases import find_version
from service.adapters.models import AdapterRow, ModelRow, PermissionRow, VersionRow
from service.adapters.servable import Model
from service.contracts.ids import AdapterId, JobId, ProjectId
from service.contracts.job import TERMINAL
from service.contracts.manifest import AdapterManifest, adapter_id_of
from service.db import ControlSession
from service.notifications import notify

# Presigned uploads live for minutes: what was swept for two days since nothing needed it any more stays empty. Text,
# because the table of jobs is known to the schema and not to this package, which lies below jobs. What no job made is
# published in the transaction that makes its row, so that nobody can be about to publish it.
UNNEEDED = text(
    """
    adapters.deleted_at is not null and (
      adapters.job_id is null or exists (
        select 1 from jobs
        where jobs.project_id = adapters.project_id and jobs.id = adapters.job_id and jobs.status = any(:terminal)
      )
    ) and greatest(
      adapters.deleted_at,
      (select jobs.finished_at from jobs where jobs.project_id = adapters.project_id and jobs.id = adapters.job_id),
      (
        select max(heir.finished_at) from jobs heir
        where heir.project_id = adapters.project_id and heir.start_adapter = adapters.id
      )
    ) > now() - interval '2 days' and not exists (
      select 1 from jobs
      where jobs.project_id = adapters.project_id and jobs.start_adapter = adapters.id
        and jobs.status <> all(:terminal)
    )
    """
).bindparams(terminal=sorted(TERMINAL))
"""Of an adapter: its last name or version, its job and the jobs that begin at it have ended, and not so long ago that
its objects are known to be gone."""


@dataclass(frozen=True)
class Trained:
    """An adapter on its way into the registry. Its content names its job, so no other job ever makes the same one.

    Without a job it was imported, and its content names the import.
    """

    project_id: ProjectId
    job_id: JobId | None
    epoch: int
    manifest: AdapterManifest

    @property
    def row(self) -> dict[str, Any]:
        return {
            "id": adapter_id_of(self.manifest),
            "project_id": self.project_id,
            "job_id": self.job_id,
            "epoch": self.epoch,
            "step": self.manifest.step,
            "manifest": self.manifest.model_dump(mode="json"),
        }


async def reserve(session: ControlSession, trained: Trained) -> None:
    """Notes an adapter that is about to be uploaded as a deleted one, so that what is never published is swept."""
    values = {**trained.row, "deleted_at": func.now()}
    await session.execute(insert(AdapterRow).values(values).on_conflict_do_nothing(index_elements=["id"]))


async def publish(session: ControlSession, trained: Trained, name: str) -> None:
    """Registers a job's final model. Its objects are stored. A second one of the same job fails loudly."""
    adapter_id = await enter(session, trained)
    session.add(
        ModelRow(name=name, project_id=trained.project_id, adapter_id=adapter_id, job_id=trained.job_id, kind="final")
    )
    await session.flush()
    await notify(session, "model")


async def enter(session: ControlSession, trained: Trained) -> AdapterId:
    """Makes the adapter a live one, also where it had ended already; holds its row. A name must follow."""
    again = {"deleted_at": None, "epoch": trained.epoch}
    entered = insert(AdapterRow).values(trained.row).on_conflict_do_update(index_elements=["id"], set_=again)
    await session.execute(entered)
    return adapter_id_of(trained.manifest)


async def find(session: AsyncSession, project: ProjectId, name: str) -> Model | None:
    """The live model of that name, of that project or shared with it; a retired, foreign or unknown one is None.

    Also the version that a reference to a registered adapter means.
    """
    if not name.startswith("ft:"):
        return await find_version(session, project, name)
    query = _live().where(ModelRow.name == name, or_(ModelRow.project_id == project, _shared_with(project)))
    found = (await session.execute(query)).one_or_none()
    return _model(*found) if found else None


async def hold(session: AsyncSession, model: Model) -> bool:
    """Keeps a model's adapter from ending before the transaction does; False where it has ended already."""
    live = select(AdapterRow.id).where(AdapterRow.id == model.adapter_id, AdapterRow.deleted_at.is_(None))
    return await session.scalar(live.with_for_update(read=True)) is not None


async def stored_manifest(session: ControlSession, adapter_id: AdapterId) -> AdapterManifest:
    """Of an adapter whose objects are known to be there, with a name or without."""
    found = await session.scalar(select(AdapterRow.manifest).where(AdapterRow.id == adapter_id))
    return AdapterManifest.model_validate(found)


async def list_models(session: AsyncSession, project: ProjectId) -> list[Model]:
    """All live models of a project, newest first, and after them those that are shared with it."""
    order = (ModelRow.created_at.desc(), ModelRow.name)
    own = await session.execute(_live().where(ModelRow.project_id == project).order_by(*order))
    named = select(PermissionRow.model_name).where(PermissionRow.project_id == project)
    others = _live().where(ModelRow.name.in_(named), ModelRow.project_id != project)
    shared = await session.execute(others.order_by(*order))
    return [_model(*row) for row in (*own, *shared)]


async def retire(session: AsyncSession, project: ProjectId, name: str) -> AdapterId | None:
    """Ends a name. Returns its adapter where nothing will need its objects any more, so that the caller deletes them.

    Raises LookupError where the project has no live model of that name.
    """
    # The adapter is locked first: two last names retired at once must not each see the other alive.
    adapter_id = await session.scalar(
        select(AdapterRow.id)
        .join(ModelRow, ModelRow.adapter_id == AdapterRow.id)
        .where(ModelRow.name == name, ModelRow.project_id == project, ModelRow.deleted_at.is_(None))
        .with_for_update(of=AdapterRow)
    )
    ended = update(ModelRow).where(ModelRow.name == name, ModelRow.deleted_at.is_(None)).values(deleted_at=func.now())
    if adapter_id is None or await session.scalar(ended.returning(ModelRow.name)) is None:
        raise LookupError(name)
    await notify(session, "model")
    return await release(session, AdapterId(adapter_id))


async def release(session: AsyncSession, adapter_id: AdapterId) -> AdapterId | None:
    """Ends an adapter that has no name and no version left.

    Returns it where its job has ended too, and with it every use of it. While the job runs its worker may publish the
    same content again, so the objects stay.
    """
    await session.execute(select(AdapterRow.id).where(AdapterRow.id == adapter_id).with_for_update())
    named = exists().where(ModelRow.adapter_id == adapter_id, ModelRow.deleted_at.is_(None))
    registered = exists().where(VersionRow.artifact_id == adapter_id, VersionRow.deleted_at.is_(None))
    unused = update(AdapterRow).where(AdapterRow.id == adapter_id, ~named, ~registered)
    deleted = unused.values(deleted_at=func.now())
    if await session.scalar(deleted.returning(AdapterRow.id)) is None:
        return None
    unneeded = select(AdapterRow.id).where(AdapterRow.id == adapter_id, UNNEEDED)
    return adapter_id if await session.scalar(unneeded) is not None else None


async def find_adapter(session: ControlSession, adapter_id: AdapterId) -> tuple[ProjectId, AdapterManifest] | None:
    """A stored adapter of any project, for replicas; None where it is unknown or deleted."""
    row = await session.scalar(select(AdapterRow).where(AdapterRow.id == adapter_id, AdapterRow.deleted_at.is_(None)))
    return (ProjectId(row.project_id), AdapterManifest.model_validate(row.manifest)) if row else None


def _live() -> Select[ModelRow, dict[str, Any]]:
    return (
        select(ModelRow, AdapterRow.manifest)
        .join(AdapterRow, AdapterRow.id == ModelRow.adapter_id)
        .where(ModelRow.deleted_at.is_(None))
    )


def _shared_with(project: ProjectId) -> ColumnElement[bool]:
    return exists().where(PermissionRow.model_name == ModelRow.name, PermissionRow.project_id == project)


def _model(row: ModelRow, manifest: dict[str, Any]) -> Model:
    return Model(
        name=row.name,
        project_id=ProjectId(row.project_id),
        adapter_id=AdapterId(row.adapter_id),
        manifest=AdapterManifest.model_validate(manifest),
        created_at=row.created_at,
    )
