"""Asking for an export of one of the project's own versions, and reading what came of it."""

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import select

from service.adapters.models import AdapterRow
from service.contracts.ids import AdapterId, ProjectId, new_export_id
from service.contracts.layout import adapter_prefix, export_prefix
from service.contracts.manifest import ADAPTER_CONFIG, AdapterManifest
from service.contracts.store import ObjectMissing, StoreError
from service.db import TenantSession
from service.errors import Conflict, InvalidRequest, NotFound
from service.registry import catalog, versions
from service.resources import Resources
from service.tenants import audit
from service.tenants.auth import Tenant
from service.transfers.models import TransferRow
from service.transfers.opening import EXPORTS, find, require_room

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Version:
    adapter: str
    number: int
    manifest: AdapterManifest
    artifact: AdapterId


@dataclass(frozen=True)
class Exportable:
    """A version and its config as plain PEFT should find it."""

    version: Version
    config: bytes


async def exportable(resources: Resources, project: ProjectId, adapter: str, number: int) -> Exportable:
    """Reads the store, so it is called in no transaction. Raises NotFound."""
    async with resources.database.tenant(project) as session:
        version = await _version(session, adapter, number)
    return Exportable(version, await _config(resources, project, version.artifact, version.manifest.base_model))


async def create(
    session: TenantSession, resources: Resources, key_id: str, found: Exportable, kind: str
) -> TransferRow:
    """A 'peft' export is there at once, a 'merged' one when a worker has made it."""
    version = found.version
    base = resources.base_model(version.manifest.base_model)
    if kind == "merged":
        await require_room(session, resources.settings.max_project_transfers)
        if base is None or base.fingerprint != version.manifest.base_fingerprint:
            raise Conflict(
                f"The base model '{version.manifest.base_model}' is not the one that this version was made for, so "
                "there is nothing to merge it into; export it as 'peft'.",
                code="base_model_changed",
                param="format",
            )
    done = kind == "peft"
    row = TransferRow(
        id=new_export_id(),
        project_id=session.project_id,
        kind=kind,
        status="succeeded" if done else "queued",
        base_model=version.manifest.base_model,
        base_fingerprint=version.manifest.base_fingerprint,
        adapter=version.adapter,
        version=version.number,
        artifact_id=version.artifact,
        files=_listed(version.manifest, found.config) if done else None,
        key_id=key_id,
        finished_at=datetime.now(UTC) if done else None,
        expires_at=datetime.now(UTC) + timedelta(hours=resources.settings.export_hours) if done else None,
    )
    session.add(row)
    await session.flush()
    await session.refresh(row)
    await audit.note(session, "adapter.export.created", row.id, adapter=row.adapter, version=row.version, format=kind)
    return row


async def open_file(
    resources: Resources, tenant: Tenant, export: str, path: str
) -> tuple[int, AsyncGenerator[bytes] | bytes]:
    """The size and content of one exported file; it ends before its last piece where it is not what was exported."""
    async with resources.database.tenant(tenant.project_id) as session:
        row = await find(session, export, EXPORTS)
    listed = {file["path"]: file for file in row.files or ()}
    if row.status != "succeeded":
        raise InvalidRequest(
            f"Export '{export}' is '{row.status}'; its files can be read once it has succeeded.",
            code="export_not_ready",
            param="id",
        )
    if path not in listed or (row.expires_at is not None and row.expires_at <= datetime.now(UTC)):
        raise _no_file(path)
    file = listed[path]
    project = tenant.project_id
    if row.kind == "peft" and path == ADAPTER_CONFIG:
        return file["bytes"], await _config(resources, project, AdapterId(row.artifact_id or ""), row.base_model)
    key = _folder(project, row) + path
    try:
        return file["bytes"], _verified(await asyncio.to_thread(resources.store.open, key), file)
    except ObjectMissing as error:
        raise _no_file(path) from error


def _folder(project: ProjectId, row: TransferRow) -> str:
    if row.kind == "peft":
        return adapter_prefix(project, AdapterId(row.artifact_id or ""))
    return export_prefix(project, row.id, row.epoch)


async def _version(session: TenantSession, adapter: str, number: int) -> Version:
    row = await versions.find(session, await catalog.find(session, adapter), number)
    manifest = await session.scalar(select(AdapterRow.manifest).where(AdapterRow.id == row.artifact_id))
    return Version(adapter, number, AdapterManifest.model_validate(manifest), AdapterId(row.artifact_id))


async def _config(resources: Resources, project: ProjectId, artifact: AdapterId, base_model: str) -> bytes:
    """Names the base as PEFT can load it where it is one of the hub, else by its public name. Never by a path."""
    try:
        key = adapter_prefix(project, artifact) + ADAPTER_CONFIG
        config: dict[str, Any] = json.loads(await asyncio.to_thread(resources.store.get, key))
    except ObjectMissing as error:
        raise _no_file(ADAPTER_CONFIG) from error
    base = resources.base_model(base_model)
    source = base.source if base and _HUB_ID.fullmatch(base.source) else base_model
    return json.dumps({**config, "base_model_name_or_path": source}, indent=2, sort_keys=True).encode() + b"\n"


def _listed(manifest: AdapterManifest, config: bytes) -> list[dict[str, Any]]:
    files = [
        {"path": file.path, "bytes": file.size, "sha256": file.sha256}
        for file in manifest.files
        if file.path != ADAPTER_CONFIG
    ]
    return [{"path": ADAPTER_CONFIG, "bytes": len(config), "sha256": hashlib.sha256(config).hexdigest()}, *files]


async def _verified(pieces: Iterator[bytes], file: dict[str, Any]) -> AsyncGenerator[bytes]:
    digest, held = hashlib.sha256(), b""
    while piece := await asyncio.to_thread(next, pieces, b""):
        digest.update(piece)
        if held:
            yield held
        held = piece
    if digest.hexdigest() != file["sha256"]:
        raise StoreError(f"the stored bytes of {file['path']} are not those that were exported")
    yield held


def _no_file(path: str) -> NotFound:
    return NotFound(
        f"There is no file '{path[:128]}' in this export, or it is there no longer; export the version again.",
        code="exported_file_not_found",
        param="path",
    )
