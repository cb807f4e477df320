"""The beginning of a batch: whether its file can be worked on. What is wrong with it becomes the batch's `errors`."""

from typing import Any

from sqlalchemy import func, select

from service.batches.holding import Holding
from service.batches.lines import Line, lines_of
from service.contracts.ids import FileId
from service.contracts.layout import file_key
from service.contracts.store import ObjectMissing
from service.files import reports
from service.files.models import FileRow
from service.gateway.resolve import NAME_LENGTH
from service.resources import Resources

SHOWN_ERRORS = 100

Errors = list[dict[str, Any]]


async def problems(resources: Resources, holding: Holding) -> Errors:
    """Why the batch cannot be worked on; nothing where it can, and then it is in progress. Raises Lost."""
    batch = holding.batch
    async with resources.database.tenant(holding.project) as session:
        # Also one that was deleted since: its bytes stay while the batch needs them.
        row = (await session.scalars(select(FileRow).where(FileRow.id == batch.input_file_id))).one()
        if row.status != "processed":
            findings = await reports.recall(session, row.sha256, "batch")
            found = findings.problems[:SHOWN_ERRORS] if findings else ()
            listed = [_error(each.code, f"This line {each.message}", line=each.line) for each in found]
            return listed or [_error("invalid_file", row.status_details or "The file cannot be used.")]
    try:
        first = await _first(resources, holding)
    except ObjectMissing:
        return [_error("file_not_found", "The input file was deleted before the batch began.", "input_file_id")]
    if first.url != batch.endpoint:
        message = f"The batch is for '{batch.endpoint}', and this line's url is '{first.url}'."
        return [_error("mismatched_endpoint", message, "url", first.number)]
    async with resources.database.control() as session:
        began = {"status": "in_progress", "in_progress_at": func.now()}
        await holding.change(session, **began, total=row.examples, model=_name(first))
    return []


def _name(line: Line) -> str | None:
    """The model that is asked first, where that can be the name of one."""
    model: str = line.body["model"]
    return model if len(model) <= NAME_LENGTH and model.isprintable() else None


async def _first(resources: Resources, holding: Holding) -> Line:
    key = file_key(holding.project, FileId(holding.batch.input_file_id))
    lines = lines_of(resources.store, key, ())
    try:
        return await anext(lines)
    finally:
        await lines.aclose()


def _error(code: str, message: str, param: str | None = None, line: int | None = None) -> dict[str, Any]:
    return {"code": code, "message": message, "param": param, "line": line}
