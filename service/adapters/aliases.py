"""What `name`, `name@alias` and `name@v7` mean: the grammar of references, and looking them up.

A lookup is one statement, so that it never sees half of a change. Changing what they mean is `service.registry`'s.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, case, exists, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from service.adapters.models import AdapterRow, AliasRow, GrantRow, RegisteredRow, VersionRow
from service.adapters.servable import Model
from service.contracts.ids import AdapterId, ProjectId
from service.contracts.manifest import AdapterManifest

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
ALIAS_PATTERN = r"^[a-z][a-z0-9_-]{0,31}$"
DEFAULT_ALIAS = "default"
IDS = ("ftjob-", "ftckpt")
"""How ids of jobs and checkpoints begin, which stand where a model's name may. Names `ft:…` have a colon."""

_NAME = re.compile(NAME_PATTERN[1:-1])
_ALIAS = re.compile(ALIAS_PATTERN[1:-1])
_VERSION = re.compile(r"v([1-9][0-9]{0,8})")
_VERSION_LIKE = re.compile(r"v[0-9]+")


@dataclass(frozen=True, slots=True)
class Reference:
    """Either an alias or a version of a registered adapter."""

    name: str
    alias: str | None
    version: int | None


@dataclass(frozen=True, slots=True)
class Share:
    """One version and how much of the traffic it gets."""

    version: int
    artifact: AdapterId
    base: str
    weight: float


@dataclass(frozen=True, slots=True)
class ServingRoute:
    """Where requests of a reference go. The weights of `shares` add up to 1; that of `shadow` is a fraction of them.

    `revision` is that of the alias, 0 where a version was named itself.
    """

    adapter: str
    alias: str | None
    revision: int
    shares: tuple[Share, ...]
    shadow: Share | None
    registered_id: str
    owner: ProjectId


@dataclass(frozen=True, slots=True)
class _Found:
    registered: RegisteredRow
    alias: AliasRow | None
    version: VersionRow
    manifest: AdapterManifest


def is_name(value: str) -> bool:
    """Whether a registered adapter may be called so, as far as spelling goes."""
    return _NAME.fullmatch(value) is not None and not value.startswith(IDS)


def is_alias(value: str) -> bool:
    return _ALIAS.fullmatch(value) is not None and _VERSION_LIKE.fullmatch(value) is None


def version_name(adapter: str, version: int) -> str:
    """The immutable public name of one version."""
    return f"{adapter}@v{version}"


def parse(reference: str) -> Reference | None:
    """None for what no registered adapter could be called; a bare name means its alias `default`."""
    name, separator, selector = reference.partition("@")
    if not is_name(name):
        return None
    if not separator:
        return Reference(name, DEFAULT_ALIAS, None)
    numbered = _VERSION.fullmatch(selector)
    if numbered is not None:
        return Reference(name, None, int(numbered[1]))
    return Reference(name, selector, None) if is_alias(selector) else None


async def find_route(session: AsyncSession, project: ProjectId, reference: str) -> ServingRoute | None:
    """The project's own adapters first, then those granted to it; None for an unknown, foreign or deleted one."""
    meant = parse(reference)
    found = await _look(session, project, meant) if meant else []
    if not found:
        return None
    registered, alias = found[0].registered, found[0].alias
    live = {each.version.number: each for each in found}
    of = (registered.id, ProjectId(registered.project_id))
    if alias is None:
        return ServingRoute(registered.name, None, 0, tuple(_share(each, 1.0) for each in found), None, *of)
    wanted = {each["version"]: float(each["weight"]) for each in alias.traffic or ()} or {alias.version: 1.0}
    weights = {number: weight for number, weight in wanted.items() if number in live}
    total = sum(weights.values())
    if total <= 0:
        return None
    shares = tuple(_share(live[number], weight / total) for number, weight in weights.items())
    return ServingRoute(registered.name, alias.alias, alias.revision, shares, _shadow(alias, live), *of)


async def find_version(session: AsyncSession, project: ProjectId, reference: str) -> Model | None:
    """The one version that a reference means: of an alias its main one, however its traffic is split."""
    meant = parse(reference)
    for found in await _look(session, project, meant) if meant else ():
        if found.alias is None or found.alias.version == found.version.number:
            return Model(
                name=version_name(found.registered.name, found.version.number),
                project_id=ProjectId(found.version.project_id),
                adapter_id=AdapterId(found.version.artifact_id),
                manifest=found.manifest,
                created_at=found.version.created_at,
            )
    return None


async def list_names(session: AsyncSession, project: ProjectId) -> list[tuple[str, datetime]]:
    """Bare names that the project can use as models, and since when: its own, newest first, then granted ones."""
    own = RegisteredRow.project_id == project
    granted = exists().where(GrantRow.registered_id == RegisteredRow.id, GrantRow.project_id == project)
    usable = exists().where(AliasRow.registered_id == RegisteredRow.id, AliasRow.alias == DEFAULT_ALIAS)
    query = (
        select(RegisteredRow.name, RegisteredRow.created_at)
        .where(or_(own, granted), usable, RegisteredRow.deleted_at.is_(None))
        .order_by(case((own, 0), else_=1), RegisteredRow.created_at.desc(), RegisteredRow.name)
    )
    # Of several of one name, the first one is meant.
    found: dict[str, datetime] = {}
    for name, created_at in await session.execute(query):
        found.setdefault(name, created_at)
    return list(found.items())


async def _look(session: AsyncSession, project: ProjectId, meant: Reference) -> list[_Found]:
    """Every live version that the reference names."""
    if meant.version is not None:
        query = _versions(project, meant.name).where(VersionRow.number == meant.version)
        rows: Sequence[Any] = (await session.execute(query)).all()
        return [_Found(row[0], None, row[1], AdapterManifest.model_validate(row[2])) for row in rows]
    query = (
        _versions(project, meant.name)
        .add_columns(AliasRow)
        .join(AliasRow, and_(AliasRow.registered_id == RegisteredRow.id, AliasRow.alias == meant.alias))
        .where(names(VersionRow.number))
    )
    rows = (await session.execute(query)).all()
    return [_Found(row[0], row[3], row[1], AdapterManifest.model_validate(row[2])) for row in rows]


def names(number: InstrumentedAttribute[int] | int) -> ColumnElement[bool]:
    """Of an alias: whether it sends anything to that version."""
    one = func.jsonb_build_object("version", number)
    return or_(
        AliasRow.version == number,
        AliasRow.traffic.contains(func.jsonb_build_array(one)),
        AliasRow.shadow.contains(one),
    )


def _versions(project: ProjectId, name: str) -> Select[RegisteredRow, VersionRow, dict[str, Any]]:
    return (
        select(RegisteredRow, VersionRow, AdapterRow.manifest)
        .join(VersionRow, VersionRow.registered_id == RegisteredRow.id)
        .join(AdapterRow, AdapterRow.id == VersionRow.artifact_id)
        .where(RegisteredRow.id == meant_by(project, name), RegisteredRow.deleted_at.is_(None))
        .where(VersionRow.deleted_at.is_(None), AdapterRow.deleted_at.is_(None))
        .order_by(VersionRow.number)
        # Rows of this session may be older than what the statement reads.
        .execution_options(populate_existing=True)
    )


def meant_by(project: ProjectId, name: str) -> ColumnElement[str]:
    """The id of the adapter that a name means to a project. Its own, even a deleted one, goes before granted ones."""
    granted_at = (
        select(GrantRow.created_at)
        .where(GrantRow.registered_id == RegisteredRow.id, GrantRow.project_id == project)
        .scalar_subquery()
    )
    granted = exists().where(GrantRow.registered_id == RegisteredRow.id, GrantRow.project_id == project)
    usable = and_(granted, RegisteredRow.deleted_at.is_(None))
    return (
        select(RegisteredRow.id)
        .where(RegisteredRow.name == name, RegisteredRow.purged_at.is_(None))
        .where(or_(RegisteredRow.project_id == project, usable))
        .order_by(case((RegisteredRow.project_id == project, 0), else_=1), granted_at, RegisteredRow.id)
        .limit(1)
        .correlate(None)
        .scalar_subquery()
    )


def _share(found: _Found, weight: float) -> Share:
    artifact = AdapterId(found.version.artifact_id)
    return Share(found.version.number, artifact, found.manifest.base_model, weight)


def _shadow(alias: AliasRow, live: dict[int, _Found]) -> Share | None:
    if alias.shadow is None or alias.shadow["version"] not in live:
        return None
    return _share(live[alias.shadow["version"]], float(alias.shadow["fraction"]))
