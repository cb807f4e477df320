"""Files of examples that a job or an evaluation reads: whether they can be used for that."""

from sqlalchemy import select

from service.contracts.job import Method
from service.db import TenantSession
from service.errors import InvalidRequest
from service.files.models import FileRow

FORMATS: dict[Method, tuple[str, ...]] = {"supervised": ("chat", "completion"), "dpo": ("preference",)}
"""The formats of examples that each method trains on."""


async def usable(session: TenantSession, file_id: str, param: str, method: Method | None = None) -> FileRow:
    """The tenant's file, held so that it cannot be deleted before what needs it exists.

    Raises InvalidRequest for one that is not there, not fit, or not of a format that the method trains on.
    """
    file = await found(session, file_id, param)
    require_fit(file, param, method)
    require_processed(file, param)
    return file


async def found(session: TenantSession, file_id: str, param: str) -> FileRow:
    """The same for a file that may still be processed. Raises InvalidRequest for one that is not there."""
    own = select(FileRow).where(FileRow.id == file_id, FileRow.project_id == session.project_id, FileRow.live())
    file = await session.scalar(own.with_for_update(read=True))
    if file is None:
        raise InvalidRequest(f"There is no file '{file_id}'.", code="file_not_found", param=param)
    return file


def being_processed(file: FileRow) -> bool:
    return file.status == "uploaded"


def require_processed(file: FileRow, param: str) -> None:
    if being_processed(file):
        raise InvalidRequest(
            f"File '{file.id}' is still being processed; wait until its status is 'processed', then try again.",
            code="file_not_processed",
            param=param,
        )


def require_fit(file: FileRow, param: str, method: Method | None = None) -> None:
    """Raises InvalidRequest for what can be said against a file by now."""
    if file.purpose != "fine-tune":
        raise InvalidRequest(
            f"File '{file.id}' has purpose '{file.purpose}'; upload it with purpose 'fine-tune'.",
            code="invalid_file_purpose",
            param=param,
        )
    if being_processed(file):
        return
    if file.status != "processed":
        reason = file.status_details or f"its status is '{file.status}'"
        raise InvalidRequest(f"File '{file.id}' cannot be used: {reason}", code=_code(param), param=param)
    if method is not None:
        _refuse_other_format(file, param, method)


def _refuse_other_format(file: FileRow, param: str, method: Method) -> None:
    wanted = FORMATS[method]
    # Files of before formats were noted hold chat or completion examples; there was nothing else.
    if file.example_format in wanted or (file.example_format is None and method == "supervised"):
        return
    raise InvalidRequest(
        f"File '{file.id}' holds {file.example_format or 'chat or completion'} examples, but method '{method}' takes "
        f"{' or '.join(wanted)} examples; give another file or another 'method.type'.",
        code=_code(param),
        param=param,
    )


def _code(param: str) -> str:
    """`invalid_training_file` and the like, by the last part of the parameter's name."""
    return f"invalid_{param.rpartition('.')[2].removesuffix('_id')}"
