"""Asking for an import: whose files, which base, under which name. What is in the files is a worker's to judge."""

from sqlalchemy import select

from service.adapters import destination
from service.contracts.base_model import BaseModelInfo
from service.contracts.ids import new_import_id
from service.contracts.manifest import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from service.contracts.servable import MAX_CONFIG_BYTES
from service.db import TenantSession
from service.errors import InvalidRequest
from service.files.models import FileRow
from service.resources import Resources
from service.tenants import audit
from service.transfers.buckets import Located
from service.transfers.models import TransferRow
from service.transfers.opening import require_room
from service.transfers.schemas import CreateImport, SourceFiles

PURPOSE = "user_data"


async def create(
    session: TenantSession, resources: Resources, key_id: str, request: CreateImport, located: Located | None
) -> TransferRow:
    """Queues an import. It is enqueued when the transaction commits."""
    base = _base(resources, request.base_model)
    await destination.check(session, resources, session.project_id, request.adapter, base.name)
    if located is None:
        assert request.files is not None
        source, sizes = await _files(session, request.files)
    else:
        source, sizes = {"bucket": located.bucket, "keys": located.keys, "sizes": located.sizes}, located.sizes
    _check_sizes(sizes, resources.settings.max_import_bytes, "files" if located is None else "source")
    await require_room(session, resources.settings.max_project_transfers)
    row = TransferRow(
        id=new_import_id(),
        project_id=session.project_id,
        kind="import",
        base_model=base.name,
        base_fingerprint=base.fingerprint,
        adapter=request.adapter,
        source=source,
        key_id=key_id,
    )
    session.add(row)
    await session.flush()
    await session.refresh(row)
    await audit.note(session, "adapter.import.created", row.id, adapter=request.adapter)
    return row


def _base(resources: Resources, name: str | None) -> BaseModelInfo:
    bases = resources.settings.base_models
    if name is None and len(bases) == 1:
        return bases[0]
    found = resources.base_model(name) if name is not None else None
    if found is None:
        offered = ", ".join(sorted(base.name for base in bases))
        raise InvalidRequest(
            f"'base_model' must name the base that the adapter was trained on, one of: {offered}.",
            code="base_model_not_found",
            param="base_model",
        )
    return found


async def _files(session: TenantSession, files: SourceFiles) -> tuple[dict[str, object], dict[str, int]]:
    wanted = {ADAPTER_CONFIG: files.config, ADAPTER_WEIGHTS: files.weights}
    found = {name: await _file(session, name, file_id) for name, file_id in wanted.items()}
    return {"files": wanted}, {name: file.bytes for name, file in found.items()}


async def _file(session: TenantSession, name: str, file_id: str) -> FileRow:
    own = select(FileRow).where(FileRow.id == file_id, FileRow.project_id == session.project_id, FileRow.live())
    file = await session.scalar(own)
    param = f"files.{name}"
    if file is None:
        raise InvalidRequest(f"There is no file '{file_id}'.", code="file_not_found", param=param)
    if file.purpose != PURPOSE:
        raise InvalidRequest(
            f"File '{file_id}' has purpose '{file.purpose}'; upload it with purpose '{PURPOSE}'.",
            code="invalid_file_purpose",
            param=param,
        )
    if file.status != "processed":
        raise InvalidRequest(
            f"File '{file_id}' is still being processed; wait until its status is 'processed', then try again.",
            code="file_not_processed",
            param=param,
        )
    return file


def _check_sizes(sizes: dict[str, int], most: int, param: str) -> None:
    for name, limit in ((ADAPTER_CONFIG, MAX_CONFIG_BYTES), (ADAPTER_WEIGHTS, most)):
        if not 0 < sizes[name] <= limit:
            raise InvalidRequest(
                f"{name} has {sizes[name]} bytes; 1 to {limit} are taken.", code="invalid_adapter_size", param=param
            )
