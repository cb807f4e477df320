"""Aliases: what each stands for, changed by compare and set, and every change kept.

A change is one transaction that holds the registered adapter's row, and tells of itself as it commits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from service.adapters.aliases import is_alias
from service.adapters.models import AliasRow, RegisteredRow, VersionRow
from service.contracts.ids import ProjectId
from service.db import ControlSession, TenantSession
from service.errors import Conflict, InvalidRequest, NotFound
from service.registry import announce, catalog, history
from service.registry.history import Action, Why

Session = TenantSession | ControlSession

MOST_ALIASES = 100


@dataclass(frozen=True)
class State:
    """What an alias stands for. `traffic` is [{version, weight}], `shadow` {version, fraction}, `automatic_rollback`
    {max_error_rate, min_requests, window_seconds}.
    """

    version: int
    traffic: list[dict[str, Any]] | None = None
    shadow: dict[str, Any] | None = None
    automatic_rollback: dict[str, Any] | None = None

    @property
    def versions(self) -> set[int]:
        shadowed = {self.shadow["version"]} if self.shadow else set[int]()
        return {self.version, *(share["version"] for share in self.traffic or ())} | shadowed


async def promote(
    session: Session,
    project: ProjectId,
    name: str,
    alias: str,
    version: int,
    *,
    if_revision: int | None,
    actor: str,
    reason: str | None,
    evaluation_id: str | None = None,
    traffic: list[dict[str, Any]] | None = None,
    shadow: dict[str, Any] | None = None,
    automatic_rollback: dict[str, Any] | Literal["as it is"] | None = "as it is",
) -> AliasRow:
    """Points an alias at a version, or at several by weight; without `traffic` and `shadow` they end.

    Raises Conflict `revision_mismatch` where the alias is at another revision than `if_revision`, 0 for none at all.
    Without `if_revision` nothing happens where it stands for just that already; with it every success is a revision.
    """
    check_alias(alias)
    registered = await catalog.lock(session, project, name)
    before = await _current(session, registered, alias)
    check_revision(before, alias, if_revision)
    if automatic_rollback == "as it is":
        automatic_rollback = before.automatic_rollback if before else None
    wanted = State(version, traffic, shadow, automatic_rollback)
    await _check_versions(session, registered, wanted)
    if before is None:
        await _check_room(session, registered)
    elif if_revision is None and wanted == _state(before):
        return before
    action = _kind(_state(before), wanted) if before else "promote"
    return await _set(session, registered, alias, before, wanted, Why(action, actor, reason, evaluation_id))


async def begin(session: Session, registered: RegisteredRow, alias: str, version: int, actor: str) -> None:
    """Points an alias that there is none of yet at a version of a locked adapter."""
    if await _current(session, registered, alias) is None:
        await _set(session, registered, alias, None, State(version), Why("promote", actor))


async def rollback(
    session: Session,
    project: ProjectId,
    name: str,
    alias: str,
    *,
    actor: str,
    reason: str | None,
    action: Action = "rollback",
) -> AliasRow:
    """Back to the version that had all the traffic before, or, out of a split, to the one that had it before that.

    Repeated, it goes further back. Raises Conflict where there is none.
    """
    registered = await catalog.lock(session, project, name)
    before = await find(session, registered, alias)
    version = await previous(session, registered, before)
    if version is None:
        raise Conflict(
            f"'{name}@{alias}' has stood for no other version that is still there.", code="no_previous_version"
        )
    wanted = State(version, automatic_rollback=before.automatic_rollback)
    return await _set(session, registered, alias, before, wanted, Why(action, actor, reason))


async def previous(session: Session, registered: RegisteredRow, alias: AliasRow) -> int | None:
    """The version that a rollback of the alias leads to."""
    settled = await history.settled(session, registered, alias.alias)
    if alias.traffic is None:
        settled = settled[:-1]
    elif not settled:
        settled = [alias.version]
    return settled[-1] if settled else None


async def delete(
    session: TenantSession, name: str, alias: str, *, if_revision: int | None, actor: str
) -> tuple[RegisteredRow, AliasRow]:
    registered = await catalog.lock(session, session.project_id, name)
    before = await find(session, registered, alias)
    check_revision(before, alias, if_revision)
    await session.delete(before)
    before.revision += 1
    why = Why("delete", actor)
    history.note(session, before, before.version, None, {}, why)
    await session.flush()
    await announce.changed(session, registered, before, before.version, None, why)
    return registered, before


async def find(session: AsyncSession, registered: RegisteredRow, alias: str) -> AliasRow:
    row = await _current(session, registered, alias)
    if row is None:
        raise NotFound(
            f"The adapter '{registered.name}' has no alias '{alias}'.", code="alias_not_found", param="alias"
        )
    return row


async def list_aliases(session: TenantSession, registered: Sequence[RegisteredRow]) -> Sequence[AliasRow]:
    """Of all these adapters, sorted by name."""
    of = AliasRow.registered_id.in_([row.id for row in registered])
    return (await session.scalars(select(AliasRow).where(of).order_by(AliasRow.alias))).all()


def check_alias(alias: str) -> None:
    if not is_alias(alias):
        raise InvalidRequest(
            f"'{alias[:32]}' is no alias: 1 to 32 lowercase letters, digits, '_' and '-', beginning with a letter, and "
            "not 'v' with a number, which names a version.",
            code="invalid_alias",
            param="alias",
        )


def check_revision(before: AliasRow | None, alias: str, if_revision: int | None) -> None:
    revision = before.revision if before else 0
    if if_revision is not None and if_revision != revision:
        raise Conflict(
            f"Alias '{alias}' is at revision {revision} and not {if_revision}: somebody else has changed it; look at "
            "it again before you do.",
            code="revision_mismatch",
            param="if_revision",
        )


async def _current(session: AsyncSession, registered: RegisteredRow, alias: str) -> AliasRow | None:
    query = select(AliasRow).where(AliasRow.registered_id == registered.id, AliasRow.alias == alias)
    return await session.scalar(query.execution_options(populate_existing=True))


def _state(alias: AliasRow) -> State:
    return State(alias.version, alias.traffic, alias.shadow, alias.automatic_rollback)


def _kind(before: State, wanted: State) -> Action:
    if before.version != wanted.version or before == wanted:
        return "promote"
    if before.traffic != wanted.traffic:
        return "traffic"
    return "shadow" if before.shadow != wanted.shadow else "update"


async def _check_versions(session: AsyncSession, registered: RegisteredRow, wanted: State) -> None:
    query = select(VersionRow.number).where(
        VersionRow.registered_id == registered.id,
        VersionRow.number.in_(wanted.versions),
        VersionRow.deleted_at.is_(None),
    )
    missing = wanted.versions - set(await session.scalars(query))
    if missing:
        raise NotFound(
            f"The adapter '{registered.name}' has no version v{min(missing)}.",
            code="version_not_found",
            param="version",
        )


async def _check_room(session: AsyncSession, registered: RegisteredRow) -> None:
    there = select(func.count()).where(AliasRow.registered_id == registered.id)
    if (await session.scalar(there) or 0) >= MOST_ALIASES:
        raise Conflict(f"The adapter '{registered.name}' has {MOST_ALIASES} aliases already.", code="too_many_aliases")


async def _set(
    session: Session,
    registered: RegisteredRow,
    alias: str,
    before: AliasRow | None,
    wanted: State,
    why: Why,
) -> AliasRow:
    row, previous = before, before.version if before else None
    if row is None:
        row = AliasRow(registered_id=registered.id, alias=alias, project_id=registered.project_id, revision=0)
        row.revision = await history.last_revision(session, registered, alias)
        session.add(row)
    row.version, row.traffic, row.shadow = wanted.version, wanted.traffic, wanted.shadow
    row.automatic_rollback = wanted.automatic_rollback
    row.revision += 1
    row.updated_at = func.clock_timestamp()
    detail = {"traffic": wanted.traffic, "shadow": wanted.shadow, "automatic_rollback": wanted.automatic_rollback}
    history.note(session, row, previous, wanted.version, detail, why)
    await session.flush()
    await session.refresh(row)
    await announce.changed(session, registered, row, previous, wanted.version, why)
    return row
