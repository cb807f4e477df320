"""Which model names exist and which adapter each points at: publishing, finding and retiring them.

Adapters are immutable and named by content; names are what tenants see. The bytes are verified by whoever publishes.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Select, exists, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from service.adapters.models import AdapterRow, ModelRow
from service.contracts.ids import AdapterId, JobId, ProjectId, fine_tuned_model_name
from service.contracts.manifest import AdapterManifest, adapter_id_of
from service.db import ControlSession, TenantSession
from service.notifications import notify

NAME_ATTEMPTS = 5


@dataclass(frozen=True)
class Model:
    """A servable name of one project."""

    name: str
    project_id: ProjectId
    adapter_id: AdapterId
    manifest: AdapterManifest
    created_at: datetime


@dataclass(frozen=True)
class Publication:
    """A trained adapter on its way into the registry, and what its name is made of."""

    project_id: ProjectId
    job_id: JobId
    epoch: int
    manifest: AdapterManifest
    organization: str
    suffix: str | None
    kind: Literal["final", "checkpoint"] = "final"


async def publish(session: ControlSession, publication: Publication) -> str:
    """Registers the adapter under a new public name and returns that name. Its objects must already be stored."""
    adapter_id = adapter_id_of(publication.manifest)
    session.add(
        AdapterRow(
            id=adapter_id,
            project_id=publication.project_id,
            job_id=publication.job_id,
            epoch=publication.epoch,
            step=publication.manifest.step,
            manifest=publication.manifest.model_dump(mode="json"),
        )
    )
    await session.flush()
    name = await _claim_name(session, publication, adapter_id)
    await notify(session, "model")
    return name


async def _claim_name(session: ControlSession, publication: Publication, adapter_id: AdapterId) -> str:
    for _ in range(NAME_ATTEMPTS):
        name = fine_tuned_model_name(publication.manifest.base_model, publication.organization, publication.suffix)
        row = {
            "name": name,
            "project_id": publication.project_id,
            "adapter_id": adapter_id,
            "job_id": publication.job_id,
            "kind": publication.kind,
        }
        # Only a taken name is tried again: a second final model of one job must fail loudly.
        statement = insert(ModelRow).values(row).on_conflict_do_nothing(index_elements=["name"])
        if await session.scalar(statement.returning(ModelRow.name)) is not None:
            return name
    raise RuntimeError(f"no free model name for {publication.job_id} in {NAME_ATTEMPTS} attempts")


async def find(session: AsyncSession, project: ProjectId, name: str) -> Model | None:
    """The live model of that name in that project; a retired, foreign or unknown one is None."""
    query = _live(project).where(ModelRow.name == name)
    found = (await session.execute(query)).one_or_none()
    return _model(*found) if found else None


async def list_models(session: AsyncSession, project: ProjectId) -> list[Model]:
    """All live models of a project, newest first."""
    query = _live(project).order_by(ModelRow.created_at.desc(), ModelRow.name)
    return [_model(*row) for row in await session.execute(query)]


async def retire(session: TenantSession, name: str) -> AdapterId | None:
    """Ends a name. Returns its adapter where that was the last name, so that the caller may delete its objects.

    Raises LookupError where the project has no live model of that name.
    """
    # The adapter is locked first: two last names retired at once must not each see the other alive.
    adapter_id = await session.scalar(
        select(AdapterRow.id)
        .join(ModelRow, ModelRow.adapter_id == AdapterRow.id)
        .where(ModelRow.name == name, ModelRow.project_id == session.project_id, ModelRow.deleted_at.is_(None))
        .with_for_update(of=AdapterRow)
    )
    ended = update(ModelRow).where(ModelRow.name == name, ModelRow.deleted_at.is_(None)).values(deleted_at=func.now())
    if adapter_id is None or await session.scalar(ended.returning(ModelRow.name)) is None:
        raise LookupError(name)
    in_use = exists().where(ModelRow.adapter_id == adapter_id, ModelRow.deleted_at.is_(None))
    deleted = update(AdapterRow).where(AdapterRow.id == adapter_id, ~in_use).values(deleted_at=func.now())
    last = await session.scalar(deleted.returning(AdapterRow.id))
    await notify(session, "model")
    return AdapterId(last) if last is not None else None


async def find_adapter(session: ControlSession, adapter_id: AdapterId) -> tuple[ProjectId, AdapterManifest] | None:
    """A stored adapter of any project, for replicas; None where it is unknown or deleted."""
    row = await session.scalar(select(AdapterRow).where(AdapterRow.id == adapter_id, AdapterRow.deleted_at.is_(None)))
    return (ProjectId(row.project_id), AdapterManifest.model_validate(row.manifest)) if row else None


def _live(project: ProjectId) -> Select[ModelRow, dict[str, Any]]:
    return (
        select(ModelRow, AdapterRow.manifest)
        .join(AdapterRow, AdapterRow.id == ModelRow.adapter_id)
        .where(ModelRow.project_id == project, ModelRow.deleted_at.is_(None))
    )


def _model(row: ModelRow, manifest: dict[str, Any]) -> Model:
    return Model(
        name=row.name,
        project_id=ProjectId(row.project_id),
        adapter_id=AdapterId(row.adapter_id),
        manifest=AdapterManifest.model_validate(manifest),
        created_at=row.created_at,
    )
