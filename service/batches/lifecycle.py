"""Creating, finding, listing and cancelling batches. What happens to them in between is the executor's."""

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import func, select

from service.batches.models import BatchRow
from service.batches.schemas import CreateBatch
from service.contracts.ids import new_batch_id
from service.db import TenantSession
from service.errors import Conflict, InvalidRequest, NotFound
from service.files.lookup import find_file, whole
from service.gateway.routes import PARSERS
from service.limits.spend import require_unreserved
from service.listing import Cursor, rows_of
from service.settings import ServiceSettings
from service.tenants import audit, scopes
from service.tenants.auth import Tenant

WINDOW = timedelta(hours=24)
CANCELLABLE = ("validating", "in_progress")


async def create(session: TenantSession, settings: ServiceSettings, tenant: Tenant, request: CreateBatch) -> BatchRow:
    """A batch that waits for its turn. What its file holds is judged then, and told in the batch's `errors`."""
    # Else a key that may not ask a model could have a batch do it.
    scopes.require(tenant.scopes, "POST", request.endpoint)
    if request.endpoint not in PARSERS:
        raise InvalidRequest(
            f"No model of this service answers '{request.endpoint}'.", param="endpoint", code="model_not_supported"
        )
    file = whole(await find_file(session, request.input_file_id))
    if file.purpose != "batch":
        raise InvalidRequest(
            f"File '{file.id}' has the purpose '{file.purpose}'; upload it with the purpose 'batch'.",
            param="input_file_id",
            code="invalid_file_purpose",
        )
    await require_unreserved(session, settings)
    expiry = request.output_expires_after
    row = BatchRow(
        id=new_batch_id(),
        project_id=session.project_id,
        key_id=tenant.key_id,
        input_file_id=file.id,
        endpoint=request.endpoint,
        completion_window=request.completion_window,
        batch_metadata=request.metadata,
        output_lifetime_seconds=None if expiry is None else expiry.seconds,
        expires_at=func.now() + WINDOW,
    )
    session.add(row)
    await session.flush()
    await session.refresh(row)
    await audit.note(session, "batch.created", row.id, endpoint=row.endpoint, input_file=row.input_file_id)
    return row


async def find(session: TenantSession, batch_id: str, *, hold: bool = False) -> BatchRow:
    """The caller's batch, with `hold` not changed by anybody else until the transaction ends. Raises NotFound."""
    query = select(BatchRow).where(BatchRow.id == batch_id)
    row = await session.scalar(query.with_for_update() if hold else query)
    if row is None:
        raise NotFound(f"No batch found with id '{batch_id}'.", param="batch_id")
    return row


async def list_batches(session: TenantSession, cursor: Cursor) -> Sequence[BatchRow]:
    """A page and one row more where another follows."""
    begin = select(BatchRow.created_at, BatchRow.id).where(BatchRow.id == cursor.after)
    return await rows_of(session, select(BatchRow), (BatchRow.created_at, BatchRow.id), cursor, begin)


async def cancel(session: TenantSession, batch_id: str) -> BatchRow:
    """Asks for the batch's end; once asked it may be asked again. Raises Conflict where it is over or nearly so."""
    row = await find(session, batch_id, hold=True)
    if row.status in ("cancelling", "cancelled"):
        return row
    if row.status not in CANCELLABLE:
        raise Conflict(f"Cannot cancel a batch with status '{row.status}'.", param="batch_id")
    row.status = "cancelling"
    row.cancelling_at = await session.scalar(select(func.now()))
    await session.flush()
    await audit.note(session, "batch.cancelled", row.id)
    return row
