"""Where a worker may store what it made, and whether that is what was asked for."""

from typing import Any

from service.adapters.stored import check_names
from service.contracts.ids import ProjectId
from service.contracts.layout import adapter_prefix, export_prefix
from service.contracts.manifest import ADAPTER_CONFIG, ADAPTER_WEIGHTS, MANIFEST, AdapterManifest, adapter_id_of
from service.contracts.servable import MAX_SCALE
from service.contracts.transfer import TransferUploads
from service.contracts.worker import UploadTargets
from service.errors import InvalidRequest
from service.resources import Resources
from service.transfers.claim import held
from service.transfers.models import TransferRow

MAX_MERGED_FILES = 1024
MAX_RESERVED = 32
"""Each epoch makes the same adapter, up to what its machine computes otherwise."""


async def targets(resources: Resources, transfer: str, request: TransferUploads) -> UploadTargets:
    """Presigned PUTs. An import's place is noted, so that what is never published is deleted. Raises LeaseLost."""
    async with resources.database.control() as session:
        row = await held(session, transfer, request.epoch)
        if row.kind == "import":
            manifest = checked_adapter(resources, row, request.adapter)
            prefix, names = adapter_folder(row, manifest), [*(file.path for file in manifest.files), MANIFEST]
            row.reserved = sorted({*row.reserved, adapter_id_of(manifest)})[:MAX_RESERVED]
        else:
            check_names(request.files, MAX_MERGED_FILES)
            prefix, names = merged_folder(row), [file.path for file in request.files]
    seconds = resources.settings.presign_seconds
    return UploadTargets(urls={name: resources.store.presign_put(prefix + name, seconds) for name in names})


def adapter_folder(row: TransferRow, manifest: AdapterManifest) -> str:
    return adapter_prefix(ProjectId(row.project_id), adapter_id_of(manifest))


def merged_folder(row: TransferRow) -> str:
    return export_prefix(ProjectId(row.project_id), row.id, row.epoch)


def checked_adapter(resources: Resources, row: TransferRow, manifest: AdapterManifest | None) -> AdapterManifest:
    """Raises InvalidRequest where it is not one that this import could make and a replica would serve."""
    if manifest is None:
        raise InvalidRequest("An import comes with its adapter's manifest.", param="adapter")
    expected: dict[str, Any] = {
        "job_id": row.id,
        "base_model": row.base_model,
        "base_fingerprint": row.base_fingerprint,
        "step": 0,
    }
    for name, value in expected.items():
        if getattr(manifest, name) != value:
            raise _mismatch(f"{name} = {getattr(manifest, name)!r}", repr(value), name)
    if manifest.rank > resources.settings.max_lora_rank:
        raise _mismatch(f"rank = {manifest.rank}", f"at most {resources.settings.max_lora_rank}", "rank")
    if manifest.alpha / manifest.rank > MAX_SCALE:
        raise _mismatch(f"alpha = {manifest.alpha:g}", f"at most {MAX_SCALE:g} times the rank", "alpha")
    if {file.path for file in manifest.files} != {ADAPTER_CONFIG, ADAPTER_WEIGHTS}:
        raise InvalidRequest(f"An adapter is {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}.", param="files")
    check_names(manifest.files)
    return manifest


def _mismatch(said: str, wanted: str, param: str) -> InvalidRequest:
    return InvalidRequest(
        f"The adapter's manifest says {said}, the import says {wanted}.", code="adapter_mismatch", param=param
    )
