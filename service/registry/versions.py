"""Versions of registered adapters: adding, finding and deleting them, and asking for them to be kept at hand.

A version is one artifact under a number. It is never changed but for being pinned; its number is never used again.
Whoever locks takes the job first, then the artifact, then the registered adapter.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sqlalchemy import Select, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from service.adapters import registry
from service.adapters.aliases import DEFAULT_ALIAS, names
from service.adapters.destination import refuse_unfit
from service.adapters.models import AdapterRow, AliasRow, RegisteredRow, VersionRow
from service.contracts.ids import AdapterId, ProjectId, new_version_id
from service.contracts.manifest import AdapterManifest
from service.db import ControlSession, TenantSession
from service.errors import Conflict, InvalidRequest, NotFound
from service.jobs.models import JobRow
from service.listing import Cursor, rows_of
from service.notifications import notify
from service.registry import catalog, promote
from service.registry.history import SERVICE
from service.tenants import audit


@dataclass(frozen=True)
class Source:
    """What a version was made from."""

    type: Literal["job", "checkpoint", "model", "import"]
    id: str


async def add(
    session: TenantSession | ControlSession,
    project: ProjectId,
    name: str,
    source: Source,
    *,
    artifact: AdapterId,
    provenance: dict[str, Any],
    evaluation: dict[str, Any] | None = None,
    create_missing: bool,
    actor: str = SERVICE,
    gated: str | None = None,
) -> VersionRow:
    """The next version of the project's adapter. The first one of all becomes its alias `default`, unless that is the
    `gated` alias, which an evaluation decides on.

    Raises where the artifact has ended or is of another base than the versions before it.
    """
    held = await _hold(session, project, artifact)
    manifest = AdapterManifest.model_validate(held.manifest)
    registered = await (catalog.lock_or_create if create_missing else catalog.lock)(session, project, name)
    refuse_unfit(registered, manifest.base_model)
    registered.base_model = manifest.base_model
    last = await session.scalar(select(func.max(VersionRow.number)).where(VersionRow.registered_id == registered.id))
    row = VersionRow(project_id=project, registered_id=registered.id, number=(last or 0) + 1)
    row.id, row.artifact_id, row.source = new_version_id(), artifact, asdict(source)
    row.job_id, row.step = held.job_id, held.step if held.job_id else None
    row.provenance, row.evaluation = provenance, evaluation
    session.add(row)
    await session.flush()
    await session.refresh(row)
    if row.number == 1 and gated != DEFAULT_ALIAS:
        await promote.begin(session, registered, DEFAULT_ALIAS, row.number, actor)
    await notify(session, "model")
    await audit.note(session, "adapter.version.created", row.id, project, adapter=name, version=row.number)
    return row


async def _hold(session: AsyncSession, project: ProjectId, artifact: AdapterId) -> AdapterRow:
    """Keeps the artifact from ending before the transaction does."""
    query = select(AdapterRow).where(AdapterRow.id == artifact, AdapterRow.project_id == project)
    row = await session.scalar(query)
    if row is not None and row.job_id is not None:
        job = select(JobRow.id).where(JobRow.id == row.job_id)
        await session.execute(job.with_for_update(read=True, key_share=True))
    live = query.where(AdapterRow.deleted_at.is_(None)).with_for_update(read=True)
    row = await session.scalar(live.execution_options(populate_existing=True))
    if row is None:
        raise InvalidRequest(
            "The adapter's files were deleted with its last name; train or import it again.",
            code="adapter_files_deleted",
            param="source",
        )
    return row


async def find(session: TenantSession, registered: RegisteredRow, number: int) -> VersionRow:
    """A live version. Raises NotFound."""
    row = await session.scalar(_live(registered).where(VersionRow.number == number))
    if row is None:
        raise not_found(registered.name, number)
    return row


async def list_versions(session: TenantSession, registered: RegisteredRow, cursor: Cursor) -> Sequence[VersionRow]:
    columns = (VersionRow.created_at, VersionRow.id)
    begin = select(*columns).where(VersionRow.registered_id == registered.id, VersionRow.id == cursor.after)
    return await rows_of(session, _live(registered), columns, cursor, begin)


async def manifests(session: TenantSession, rows: Sequence[VersionRow]) -> dict[str, AdapterManifest]:
    """Of each version's artifact, by the artifact's id."""
    query = select(AdapterRow.id, AdapterRow.manifest).where(AdapterRow.id.in_({row.artifact_id for row in rows}))
    return {found: AdapterManifest.model_validate(manifest) for found, manifest in await session.execute(query)}


async def delete(session: TenantSession, name: str, number: int) -> tuple[VersionRow, AdapterId | None]:
    """Ends a version for good. Gives its artifact too where nothing else needs its objects.

    Raises Conflict while an alias sends anything to it.
    """
    row = await find(session, await catalog.find(session, name), number)
    await session.execute(select(AdapterRow.id).where(AdapterRow.id == row.artifact_id).with_for_update())
    registered = await catalog.lock(session, session.project_id, name)
    row = await find(session, registered, number)
    named = select(AliasRow.alias).where(AliasRow.registered_id == registered.id, names(number))
    if aliases := (await session.scalars(named.order_by(AliasRow.alias))).all():
        raise Conflict(
            f"Version v{number} of '{name}' is in use by alias {', '.join(repr(alias) for alias in aliases)}; point "
            "them at another version first.",
            code="version_in_use",
            param="version",
        )
    row.pinned, row.deleted_at = False, func.clock_timestamp()
    await session.flush()
    await notify(session, "model")
    await audit.note(session, "adapter.version.deleted", row.id, adapter=name, version=number)
    return row, await registry.release(session, AdapterId(row.artifact_id))


async def warm(session: TenantSession, name: str, number: int) -> VersionRow:
    """Asks for a version to be loaded where its next request will go. A hint: nothing waits for it."""
    row = await find(session, await catalog.lock(session, session.project_id, name), number)
    row.warm_requested_at = func.clock_timestamp()
    await notify(session, "model")
    return await _as_stored(session, row)


async def pin(session: TenantSession, name: str, number: int, most: int) -> VersionRow:
    """Asks for a version to be kept loaded. Raises Conflict where the project has `most` of them already."""
    # Pins of one project are counted one after the other, whichever adapters they are of.
    await session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended("pins " + session.project_id, 0))))
    row = await find(session, await catalog.lock(session, session.project_id, name), number)
    pinned = select(func.count()).where(
        VersionRow.project_id == session.project_id, VersionRow.pinned, VersionRow.id != row.id
    )
    if (await session.scalar(pinned) or 0) >= most:
        raise Conflict(
            f"This project has {most} pinned versions, as many as it may; unpin one first.", code="too_many_pins"
        )
    row.pinned, row.warm_requested_at = True, func.clock_timestamp()
    await notify(session, "model")
    await audit.note(session, "adapter.version.pinned", row.id, adapter=name, version=number)
    return await _as_stored(session, row)


async def unpin(session: TenantSession, name: str, number: int) -> VersionRow:
    """May be repeated."""
    row = await find(session, await catalog.lock(session, session.project_id, name), number)
    row.pinned = False
    await notify(session, "model")
    await audit.note(session, "adapter.version.unpinned", row.id, adapter=name, version=number)
    return row


def not_found(name: str, number: int) -> NotFound:
    return NotFound(f"The adapter '{name}' has no version v{number}.", code="version_not_found", param="version")


def _live(registered: RegisteredRow) -> Select[VersionRow]:
    return select(VersionRow).where(VersionRow.registered_id == registered.id, VersionRow.deleted_at.is_(None))


async def _as_stored(session: TenantSession, row: VersionRow) -> VersionRow:
    await session.flush()
    await session.refresh(row)
    return row
