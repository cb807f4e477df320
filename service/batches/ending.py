"""The end of a batch: its files, its last state, and the event that tells of it, all at once; then the tidying up."""

import asyncio
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from sqlalchemy import delete, func

from service.batches.holding import Holding
from service.batches.lines import Result, left_out, lines_of
from service.batches.models import BatchPartRow
from service.contracts.ids import FileId
from service.contracts.layout import file_key
from service.contracts.store import ObjectMissing, ObjectStore
from service.files import reservation
from service.files.reservation import BATCH_LIFETIME, NewFile
from service.resources import Resources
from service.webhooks import outbox
from service.webhooks.outbox import EventType

End = Literal["completed", "expired", "cancelled", "failed"]
EVENTS: dict[End, EventType] = {
    "completed": "batch.completed",
    "expired": "batch.expired",
    "cancelled": "batch.cancelled",
    "failed": "batch.failed",
}
PURPOSE = "batch_output"
RECORDED_AT_ONCE = 1000


@dataclass(frozen=True)
class Made:
    """A file whose bytes are stored and that nobody sees yet."""

    id: FileId
    new: NewFile


async def end(resources: Resources, holding: Holding, how: End) -> None:
    """Makes the files of what was recorded and ends the batch. Raises Lost."""
    if how == "expired":
        await _record_left_out(resources, holding)
    parts = await holding.parts()
    output = await _made(resources, holding, "output", [part for part in parts if part.completed])
    error = await _made(resources, holding, "error", [part for part in parts if part.failed])
    kept = holding.batch.output_lifetime_seconds
    lifetime = BATCH_LIFETIME if kept is None else timedelta(seconds=kept)
    async with resources.database.tenant(holding.project) as session:
        for made in (output, error):
            if made is not None:
                await reservation.publish(session, made.id, lifetime, made.new)
        files = {"output_file_id": output and output.id, "error_file_id": error and error.id}
        await holding.change(session, status=how, **{f"{how}_at": func.now()}, **files)
        await outbox.emit(session, holding.project, EVENTS[how], {"id": holding.batch.id})
    await purge(resources, holding)


async def fail(resources: Resources, holding: Holding, errors: list[dict[str, Any]]) -> None:
    """Ends a batch whose file cannot be worked on."""
    async with resources.database.tenant(holding.project) as session:
        await holding.change(session, status="failed", failed_at=func.now(), errors=errors)
        await outbox.emit(session, holding.project, "batch.failed", {"id": holding.batch.id})
    await purge(resources, holding)


async def purge(resources: Resources, holding: Holding) -> None:
    """Removes what only an unfinished batch needs."""
    await asyncio.to_thread(lambda: resources.store.delete(resources.store.keys(holding.prefix)))
    async with resources.database.control() as session:
        await holding.change(session, purged_at=func.now())
        await session.execute(delete(BatchPartRow).where(BatchPartRow.batch_id == holding.batch.id))


async def _record_left_out(resources: Resources, holding: Holding) -> None:
    done = {line for part in await holding.parts() for line in part.lines}
    key = file_key(holding.project, FileId(holding.batch.input_file_id))
    results: list[Result] = []
    # Where the store has lost the input, what is left out cannot be told.
    with suppress(ObjectMissing):
        async for line in lines_of(resources.store, key, done):
            results.append(left_out(line))
            if len(results) == RECORDED_AT_ONCE:
                await holding.record(results)
                results = []
    if results:
        await holding.record(results)


async def _made(resources: Resources, holding: Holding, kind: str, parts: Sequence[BatchPartRow]) -> Made | None:
    if not parts:
        return None
    name = f"{holding.batch.id}_{kind}.jsonl"
    file_id = await reservation.reserve(resources, holding.project, NewFile(name, PURPOSE, 0, ""))
    joined = _Joined(_pieces(resources.store, [f"{holding.prefix}{part.name}.{kind}" for part in parts]))
    await asyncio.to_thread(resources.store.put_stream, file_key(holding.project, file_id), joined)
    examples = sum(part.completed if kind == "output" else part.failed for part in parts)
    return Made(file_id, NewFile(name, PURPOSE, joined.size, joined.sha256, examples=examples))


def _pieces(store: ObjectStore, keys: Sequence[str]) -> Iterator[bytes]:
    for key in keys:
        yield from store.open(key)


class _Joined:
    """The parts as what the store reads from; counted and hashed as they pass."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._held = bytearray()
        self._digest = hashlib.sha256()
        self.size = 0

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def read(self, n: int = -1, /) -> bytes:
        while n < 0 or len(self._held) < n:
            piece = next(self._pieces, b"")
            if not piece:
                break
            self._held += piece
        taken = bytes(self._held if n < 0 else self._held[:n])
        del self._held[: len(taken)]
        self._digest.update(taken)
        self.size += len(taken)
        return taken
