"""How a leased transfer ends: what was stored is verified, then one transaction, guarded by the epoch, makes it true.

A repeated call gets the answer of the first.
"""

from datetime import timedelta

from sqlalchemy import func

from service.adapters import registry, stored
from service.contracts.ids import ProjectId
from service.contracts.manifest import AdapterManifest, adapter_id_of
from service.contracts.transfer import TransferFinish, TransferFinished
from service.contracts.worker import JobFailure
from service.db import ControlSession
from service.errors import ApiError, LeaseLost
from service.registry import versions
from service.resources import Resources
from service.tenants import audit
from service.transfers.claim import lock
from service.transfers.models import TransferRow
from service.transfers.uploads import MAX_MERGED_FILES, adapter_folder, checked_adapter, merged_folder

ENDS = {"succeeded": {"succeeded", "failed"}, "failed": {"failed"}, "broken": {"queued", "failed"}}
"""Where each outcome may have led. A version may be refused although the adapter is fine."""
LONGEST_DELAY_SECONDS = 60


async def finish(resources: Resources, transfer: str, request: TransferFinish) -> TransferFinished:
    """Raises LeaseLost where the epoch no longer holds it, and InvalidRequest where what it made is not complete."""
    async with resources.database.control() as session:
        row, known = await _look(session, transfer, request)
    if known is not None:
        return known
    if request.outcome == "succeeded":
        await _verify(resources, row, request)
    async with resources.database.control() as session:
        row, known = await _look(session, transfer, request)
        if known is not None:
            return known
        await _apply(session, resources, row, request)
        return TransferFinished(status=row.status)


async def fail(session: ControlSession, row: TransferRow, failure: JobFailure) -> None:
    row.status, row.finished_at = "failed", func.clock_timestamp()
    # The database holds no NUL.
    row.error = {"code": failure.code, "message": failure.message.replace("\0", "")}
    await audit.note(session, f"adapter.{_what(row)}.failed", row.id, row.project_id, code=failure.code)


async def again(session: ControlSession, row: TransferRow, most: int, reason: str) -> None:
    """Queued once more after the loss of a worker, or failed where `most` were lost over it."""
    row.lost_workers += 1
    if row.lost_workers >= most:
        message = (
            f"{row.lost_workers} workers in a row were lost over it; the last: {reason} Try again later, and tell the "
            "operator if it persists."
        )
        await fail(session, row, JobFailure(code="worker_lost", message=message[:2000]))
        return
    delay = timedelta(seconds=min((row.lost_workers - 1) ** 2, LONGEST_DELAY_SECONDS))
    row.status, row.not_before = "queued", func.clock_timestamp() + delay


async def _verify(resources: Resources, row: TransferRow, request: TransferFinish) -> None:
    if row.kind == "import":
        manifest = checked_adapter(resources, row, request.adapter)
        await stored.verify_adapter(resources.store, adapter_folder(row, manifest), manifest)
    else:
        stored.check_names(request.files, MAX_MERGED_FILES)
        await stored.verify_sizes(resources.store, merged_folder(row), request.files)


async def _look(
    session: ControlSession, transfer: str, request: TransferFinish
) -> tuple[TransferRow, TransferFinished | None]:
    row = await lock(session, transfer)
    if row is None or row.epoch != request.epoch:
        raise LeaseLost
    if row.status == "running":
        return row, None
    if row.status not in ENDS.get(request.outcome, {"queued"}):
        raise LeaseLost
    return row, TransferFinished(status=row.status)


async def _apply(session: ControlSession, resources: Resources, row: TransferRow, request: TransferFinish) -> None:
    failure = request.failure or JobFailure(code="unknown", message="It failed.")
    match request.outcome:
        case "succeeded" if row.kind == "import":
            assert request.adapter is not None
            await _register(session, row, request.adapter, request.changes)
        case "succeeded":
            row.files = [{"path": file.path, "bytes": file.size, "sha256": file.sha256} for file in request.files]
            row.status, row.finished_at = "succeeded", func.clock_timestamp()
            row.expires_at = func.clock_timestamp() + timedelta(hours=resources.settings.export_hours)
            await session.flush()
        case "failed":
            await fail(session, row, failure)
        case "broken":
            await again(session, row, resources.settings.max_lost_workers, failure.message)
        case _:
            row.status = "queued"


async def _register(
    session: ControlSession, row: TransferRow, manifest: AdapterManifest, changes: tuple[str, ...]
) -> None:
    """The adapter's next version; where the name was given away meanwhile the import fails with that reason."""
    project, artifact = ProjectId(row.project_id), adapter_id_of(manifest)
    told = {"import": {"id": row.id, "source": row.source, "changes": list(changes)}}
    try:
        async with session.begin_nested():
            await registry.enter(session, registry.Trained(project, None, row.epoch, manifest))
            version = await versions.add(
                session,
                project,
                row.adapter,
                versions.Source("import", row.id),
                artifact=artifact,
                provenance=told,
                create_missing=True,
                actor=row.key_id,
            )
    except ApiError as error:
        await fail(session, row, JobFailure(code=error.code or "refused", message=error.message))
        return
    row.version, row.artifact_id, row.changes = version.number, artifact, list(changes)
    row.status, row.finished_at = "succeeded", func.clock_timestamp()


def _what(row: TransferRow) -> str:
    return "import" if row.kind == "import" else "export"
