"""Giving the next import or merge to a worker of its base under a new epoch, with presigned URLs, and keeping it held.

The database's clock is the only clock. A project's second transfer waits behind every other's first.
"""

from datetime import timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import aliased

from service.adapters import registry
from service.contracts.ids import AdapterId, FileId, ProjectId
from service.contracts.layout import adapter_prefix, file_key
from service.contracts.manifest import AdapterManifest
from service.contracts.transfer import (
    ImportWork,
    MergeWork,
    SourceFile,
    TransferClaim,
    TransferControl,
    TransferLease,
    TransferRenew,
)
from service.contracts.worker import AdapterRef
from service.db import ControlSession
from service.errors import LeaseLost
from service.files.models import FileRow
from service.resources import Resources
from service.transfers.buckets import store_of
from service.transfers.models import TransferRow


async def claim(resources: Resources, request: TransferClaim) -> TransferLease | None:
    async with resources.database.control() as session:
        row = await _next(session, request)
        if row is None:
            return None
        row.status, row.epoch = "running", row.epoch + 1
        row.lease_owner = request.worker
        row.lease_until = _until(resources)
        files = await _files(session, row)
        manifest = await registry.stored_manifest(session, AdapterId(row.artifact_id)) if row.artifact_id else None
    return TransferLease(
        id=row.id,
        epoch=row.epoch,
        ttl_seconds=resources.settings.lease_ttl_seconds,
        renew_seconds=resources.settings.lease_renew_seconds,
        base_model=row.base_model,
        base_fingerprint=row.base_fingerprint,
        work=_merge(resources, row, manifest) if manifest else _import(resources, row, files),
    )


async def renew(resources: Resources, transfer: str, request: TransferRenew) -> TransferControl:
    """Raises LeaseLost where the epoch no longer holds it."""
    async with resources.database.control() as session:
        row = await held(session, transfer, request.epoch)
        row.lease_until = _until(resources)
    return TransferControl(ttl_seconds=resources.settings.lease_ttl_seconds)


async def held(session: ControlSession, transfer: str, epoch: int) -> TransferRow:
    """The transfer, locked until the transaction ends. Raises LeaseLost where another epoch or nobody holds it."""
    row = await lock(session, transfer)
    if row is None or row.epoch != epoch or row.status != "running":
        raise LeaseLost
    return row


async def lock(session: ControlSession, transfer: str) -> TransferRow | None:
    query = select(TransferRow).where(TransferRow.id == transfer).with_for_update()
    return await session.scalar(query.execution_options(populate_existing=True))


async def _next(session: ControlSession, request: TransferClaim) -> TransferRow | None:
    other = aliased(TransferRow)
    running = select(func.count()).where(other.project_id == TransferRow.project_id, other.status == "running")
    query = (
        select(TransferRow)
        .where(TransferRow.status == "queued", TransferRow.not_before <= func.now())
        .where(TransferRow.base_model == request.base_model, TransferRow.base_fingerprint == request.base_fingerprint)
        .order_by(running.scalar_subquery(), TransferRow.created_at, TransferRow.id)
        .limit(1)
        .with_for_update(skip_locked=True, of=TransferRow)
    )
    return await session.scalar(query.execution_options(populate_existing=True))


async def _files(session: ControlSession, row: TransferRow) -> dict[str, FileRow]:
    """Of an import of uploaded files, by PEFT's names; also those that were deleted since."""
    wanted: dict[str, str] = (row.source or {}).get("files", {})
    query = select(FileRow).where(FileRow.project_id == row.project_id, FileRow.id.in_(wanted.values()))
    found = {file.id: file for file in await session.scalars(query)}
    return {name: found[file_id] for name, file_id in wanted.items()}


def _import(resources: Resources, row: TransferRow, files: dict[str, FileRow]) -> ImportWork:
    seconds, source = resources.settings.presign_seconds, row.source or {}
    if files:
        given = {
            name: SourceFile(
                url=resources.store.presign_get(file_key(ProjectId(row.project_id), FileId(file.id)), seconds),
                size=file.bytes,
                sha256=file.sha256,
            )
            for name, file in files.items()
        }
    else:
        store = store_of(resources.settings.store, source["bucket"])
        given = {
            name: SourceFile(url=store.presign_get(key, seconds), size=source["sizes"][name])
            for name, key in source["keys"].items()
        }
    base = resources.base_model(row.base_model)
    return ImportWork(
        files=given,
        max_rank=resources.settings.max_lora_rank,
        chat_template_sha256=base.chat_template_sha256 if base else None,
    )


def _merge(resources: Resources, row: TransferRow, manifest: AdapterManifest) -> MergeWork:
    prefix = adapter_prefix(ProjectId(row.project_id), AdapterId(row.artifact_id or ""))
    seconds = resources.settings.presign_seconds
    urls = {file.path: resources.store.presign_get(prefix + file.path, seconds) for file in manifest.files}
    return MergeWork(adapter=AdapterRef(manifest=manifest, urls=urls))


def _until(resources: Resources) -> Any:
    """The lease's new end, for the database to compute."""
    return func.clock_timestamp() + timedelta(seconds=resources.settings.lease_ttl_seconds)
