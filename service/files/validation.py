"""The report on a stored file: what was found when it came, or else is found now, in a child beside the service.

Tokens are counted now where the service has a base's tokenizer: too slow for a file on its way in, which waits.

A content is looked through once for each project and at most one at a time for each; whoever asks meanwhile waits for
the same answer, and after WAIT_SECONDS is told to ask again while the work goes on.
"""

import asyncio
import hashlib
import logging
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

from service.contracts.ids import FileId, ProjectId
from service.contracts.layout import file_key
from service.contracts.store import StoreError
from service.errors import InvalidRequest, Unavailable
from service.files import reports
from service.files.checking import Inspector, in_thread, inspector
from service.files.counting import Counting, counting
from service.files.inspection import CHECKED_PURPOSES, Findings
from service.files.lookup import find_file, whole
from service.files.models import FileRow
from service.resources import Resources
from service.tenants.auth import Tenant

WAIT_SECONDS = 60.0
PIECE_BYTES = 1 << 20

log = logging.getLogger("service.files")

_turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
Key = tuple[str, str, str, str, str]
_running: dict[Key, asyncio.Task[Findings]] = {}


@dataclass(frozen=True)
class Validated:
    """`base` is the model whose tokenizer counts, None where there is none."""

    row: FileRow
    findings: Findings
    base: str | None


async def validate(resources: Resources, tenant: Tenant, file_id: str, compare: str | None) -> Validated:
    """What is found in the file, also beside the file `compare`. Raises Unavailable where that lasts."""
    by = await asyncio.to_thread(counting, resources.settings.base_models)
    counter = by.sha256 if by else ""
    async with resources.database.tenant(tenant.project_id) as session:
        row = _checked(await find_file(session, file_id), "id")
        other = None if compare is None else _comparable(row, await find_file(session, compare))
        known = await reports.recall(session, row.sha256, row.purpose, other.sha256 if other else "", counter)
    if known is None:
        key = (tenant.project_id, row.sha256, row.purpose, other.sha256 if other else "", counter)
        known = await _awaited(key, partial(_found, resources, row, other, by))
    return Validated(row, known, by.base if by else None)


async def _awaited(key: Key, find: Callable[[], Coroutine[Any, Any, Findings]]) -> Findings:
    task = _running.get(key)
    if task is None:
        task = _running[key] = asyncio.create_task(find())
        task.add_done_callback(lambda done: _forget(key, done))
    try:
        return await asyncio.wait_for(asyncio.shield(task), WAIT_SECONDS)
    except TimeoutError as error:
        message = "The file is still being looked through; ask again for its report."
        raise Unavailable(message, code="validation_running", retry_after=5) from error


def _forget(key: Key, done: asyncio.Task[Findings]) -> None:
    del _running[key]
    if not done.cancelled() and done.exception() is not None:
        log.warning("a file was not looked through: %s", type(done.exception()).__name__)


def _checked(row: FileRow, param: str) -> FileRow:
    if row.purpose not in CHECKED_PURPOSES:
        raise InvalidRequest(
            f"File '{row.id}' has purpose '{row.purpose}'; only files with purpose 'fine-tune' or 'batch' are checked.",
            code="invalid_file_purpose",
            param=param,
        )
    return whole(row)


def _comparable(row: FileRow, other: FileRow) -> FileRow:
    if other.purpose != row.purpose:
        raise InvalidRequest(
            f"File '{other.id}' has purpose '{other.purpose}', not '{row.purpose}'; compare files of one purpose.",
            code="invalid_file_purpose",
            param="compare",
        )
    return whole(other)


async def _found(resources: Resources, row: FileRow, other: FileRow | None, by: Counting | None) -> Findings:
    async with _turns.setdefault(row.project_id, asyncio.Lock()):
        findings = await in_thread(lambda stop: _inspected(resources, row, other, by, stop))
    async with resources.database.tenant(ProjectId(row.project_id)) as session:
        kept = (row.sha256, row.purpose, findings, other.sha256 if other else "", by.sha256 if by else "")
        await reports.keep(session, ProjectId(row.project_id), *kept)
    return findings


def _inspected(
    resources: Resources, row: FileRow, other: FileRow | None, by: Counting | None, stop: threading.Event
) -> Findings:
    size = row.bytes + (other.bytes if other else 0)
    line = resources.settings.max_line_bytes
    with inspector(row.purpose, line, size, compared=other is not None, tokenizer=by.path if by else None) as child:
        if other is not None:
            _feed(child, resources, other, stop)
            child.end_file()
        _feed(child, resources, row, stop)
        return child.finish()


def _feed(child: Inspector, resources: Resources, row: FileRow, stop: threading.Event) -> None:
    key = file_key(ProjectId(row.project_id), FileId(row.id))
    for piece in _verified(resources.store.open(key, PIECE_BYTES), row):
        if child.given_up or stop.is_set():
            return
        child.feed(piece)


def _verified(pieces: Iterator[bytes], row: FileRow) -> Iterator[bytes]:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
        yield piece
    if digest.hexdigest() != row.sha256:
        raise StoreError(f"the stored bytes of {row.id} are not those that were uploaded")
