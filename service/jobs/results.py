"""The results file of a job: a row for each step, made of the metrics that its events tell.

Plain CSV, so that what is downloaded opens as a table; OpenAI documents it so and nowhere says that it is encoded.
"""

import asyncio
import csv
import hashlib
import io
from collections.abc import Iterable
from typing import Any, cast

from sqlalchemy import select

from service.contracts.ids import FileId, ProjectId
from service.contracts.job import JobSpec
from service.contracts.layout import file_key
from service.contracts.worker import Event
from service.files import reservation
from service.files.reservation import NewFile
from service.jobs.events import storable
from service.jobs.models import EventRow
from service.resources import Resources

FILENAME = "step_metrics.csv"
PURPOSE = "fine-tune-results"

COLUMNS = {
    "step": "step",
    "train_loss": "train_loss",
    "train_accuracy": "train_mean_token_accuracy",
    "valid_loss": "valid_loss",
    "valid_mean_token_accuracy": "valid_mean_token_accuracy",
    "full_valid_loss": "full_valid_loss",
    "full_valid_mean_token_accuracy": "full_valid_mean_token_accuracy",
    "full_valid_mean_kl": "full_valid_mean_kl",
}
"""Columns by the metric that fills them; the first five are OpenAI's."""

REWARDS = tuple(f"{part}_reward_{name}" for part in ("train", "valid", "full_valid") for name in ("accuracy", "margin"))
"""Further columns of preference training, named as their metrics are."""


async def store(resources: Resources, spec: JobSpec, last: Iterable[Event]) -> FileId:
    """Stores the file of a job that is about to succeed; it exists once `reservation.publish` commits with the success.

    `last` are events that the database does not have yet. What a crash or a lost lease leaves behind is a reservation,
    which the sweep of files removes; for that a second attempt writes to a new id and never over a stored file.
    """
    query = select(EventRow.data).where(EventRow.job_id == spec.job_id, EventRow.type == "metrics")
    rows: dict[int, list[Any]] = {}
    columns = columns_of(spec)
    async with resources.database.control() as session:
        async for data in await session.stream_scalars(query.order_by(EventRow.seq)):
            _take(rows, data, columns)
    for event in last:
        if event.type == "metrics":
            _take(rows, cast("dict[str, Any]", storable(event.data)), columns)
    body = await asyncio.to_thread(written, columns, rows)
    project = ProjectId(spec.project_id)
    file_id = await reservation.reserve(
        resources, project, NewFile(FILENAME, PURPOSE, len(body), hashlib.sha256(body).hexdigest())
    )
    await asyncio.to_thread(resources.store.put, file_key(project, file_id), body)
    return file_id


def columns_of(spec: JobSpec) -> dict[str, str]:
    rewards = REWARDS if spec.method == "dpo" else ()
    return {**COLUMNS, **{name: name for name in rewards}}


def written(columns: dict[str, str], rows: dict[int, list[Any]]) -> bytes:
    """The file's bytes; what is not known of a step is an empty cell."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    table.writerows(rows[step] for step in sorted(rows))
    return text.getvalue().encode()


def _take(rows: dict[int, list[Any]], data: dict[str, Any], columns: dict[str, str]) -> None:
    """Later events win, since a step that was trained again is told again."""
    step = data.get("step")
    if isinstance(step, int):
        rows[step] = [data.get(metric) for metric in columns.values()]
