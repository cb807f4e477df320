"""What has happened to aliases: written with each change, listed, and read back for a rollback."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from service.adapters.models import AliasChangeRow, AliasRow, RegisteredRow, VersionRow
from service.contracts.ids import new_alias_change_id
from service.listing import Cursor, rows_of

Action = Literal["promote", "rollback", "traffic", "shadow", "delete", "automatic_rollback", "update"]

Cause = Literal["manual", "evaluation", "automatic"]

SERVICE = "service"
"""The actor of changes that nobody's key asked for."""
REMEMBERED = 1000
"""A rollback looks at the last so many changes of its alias."""


@dataclass(frozen=True)
class Why:
    """`actor` is the id of a key, or SERVICE; `evaluation_id` is of the evaluation that decided it."""

    action: Action
    actor: str
    reason: str | None = None
    evaluation_id: str | None = None

    @property
    def cause(self) -> Cause:
        """Whether somebody asked for it, an evaluation decided it, or the service did it by itself."""
        if self.evaluation_id is not None:
            return "evaluation"
        return "automatic" if self.actor == SERVICE else "manual"


def note(
    session: AsyncSession,
    alias: AliasRow,
    from_version: int | None,
    to_version: int | None,
    detail: dict[str, Any],
    why: Why,
) -> None:
    """Adds the change that led to the alias's present revision."""
    session.add(
        AliasChangeRow(
            id=new_alias_change_id(),
            project_id=alias.project_id,
            registered_id=alias.registered_id,
            alias=alias.alias,
            revision=alias.revision,
            action=why.action,
            from_version=from_version,
            to_version=to_version,
            detail=detail,
            actor=why.actor,
            reason=why.reason,
        )
    )


async def list_changes(
    session: AsyncSession, registered: RegisteredRow, alias: str | None, cursor: Cursor
) -> Sequence[AliasChangeRow]:
    query = select(AliasChangeRow).where(AliasChangeRow.registered_id == registered.id)
    columns = (AliasChangeRow.created_at, AliasChangeRow.id)
    begin = query.with_only_columns(*columns).where(AliasChangeRow.id == cursor.after)
    if alias is not None:
        query = query.where(AliasChangeRow.alias == alias)
    return await rows_of(session, query, columns, cursor, begin)


async def last_revision(session: AsyncSession, registered: RegisteredRow, alias: str) -> int:
    """An alias that is made again goes on counting, so that nobody's old revision fits it."""
    query = select(func.max(AliasChangeRow.revision))
    of = query.where(AliasChangeRow.registered_id == registered.id, AliasChangeRow.alias == alias)
    return await session.scalar(of) or 0


async def settled(session: AsyncSession, registered: RegisteredRow, alias: str) -> list[int]:
    """The live versions that the alias sent all traffic to, one after the other, less those that were rolled back."""
    query = (
        select(AliasChangeRow)
        .where(AliasChangeRow.registered_id == registered.id, AliasChangeRow.alias == alias)
        .order_by(AliasChangeRow.revision.desc())
        .limit(REMEMBERED)
    )
    path = _path(list(reversed((await session.scalars(query)).all())))
    live = select(VersionRow.number).where(
        VersionRow.registered_id == registered.id, VersionRow.number.in_(path), VersionRow.deleted_at.is_(None)
    )
    there = set(await session.scalars(live))
    return [version for version, _ in groupby(version for version in path if version in there)]


def _path(changes: list[AliasChangeRow]) -> list[int]:
    path: list[int] = []
    for change in changes:
        if change.to_version is None:
            path = []
        elif change.action in ("rollback", "automatic_rollback"):
            while path and path[-1] != change.to_version:
                path.pop()
            path = path or [change.to_version]
        elif not change.detail.get("traffic") and change.to_version not in path[-1:]:
            path.append(change.to_version)
    return path
