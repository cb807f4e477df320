"""`weft usage`: what projects used and what it cost, for administrators."""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from weft.cli.commands import Group, Session, duration, session_of
from weft.cli.output import Column, plain, show_json, size, table

if TYPE_CHECKING:
    from weft.resources.usage import SyncReport
    from weft.types import UsageBucket

DAY = 86_400
GROUPS = {"project": "project_id", "key": "api_key_id", "model": "model", "item": "line_item"}
COLUMNS = {
    "completions": (
        Column("REQUESTS", lambda row: row.num_model_requests),
        Column("INPUT TOKENS", lambda row: row.input_tokens),
        Column("OUTPUT TOKENS", lambda row: row.output_tokens),
    ),
    "training": (Column("JOBS", lambda row: row.num_jobs), Column("TRAINED TOKENS", lambda row: row.trained_tokens)),
    "storage": (Column("AVERAGE", lambda row: size(row.average_bytes)),),
    "costs": (
        Column("AMOUNT", lambda row: f"{row.amount.value:.4f} {row.amount.currency.upper()}"),
        Column("QUANTITY", lambda row: row.quantity and f"{row.quantity:g} {row.quantity_unit or ''}".strip()),
    ),
}


@click.group(cls=Group)
def usage() -> None:
    """What was used and what it cost, for administrators."""


def spanning(groups: Sequence[str]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The options of every report."""

    def add(command: Callable[..., None]) -> Callable[..., None]:
        if groups:
            by = click.option("--by", multiple=True, type=click.Choice(tuple(groups)), help="A row for each of these.")
            command = by(command)
        project = click.option("--project", "projects", multiple=True, metavar="ID", help="Only of these projects.")
        since = click.option("--since", default="7d", show_default=True, type=duration, help="From how long ago.")
        width = click.option("--every", default="1d", show_default=True, type=click.Choice(("1m", "1h", "1d")))
        return project(since(width(command)))

    return add


@usage.command()
@spanning(("model", "project", "key"))
@session_of
def completions(session: Session, **span: Any) -> None:
    """Requests and tokens of completions."""
    _show(session, "completions", session.client.usage.completions, span)


@usage.command()
@spanning(("model", "project", "key"))
@session_of
def training(session: Session, **span: Any) -> None:
    """Tokens that jobs were trained on, when each job ended."""
    _show(session, "training", session.client.usage.fine_tuning, span)


@usage.command()
@spanning(())
@session_of
def storage(session: Session, **span: Any) -> None:
    """What projects had stored in files."""
    _show(session, "storage", session.client.usage.storage, {**span, "by": ("project",)})


@usage.command()
@spanning(("item", "project"))
@session_of
def costs(session: Session, **span: Any) -> None:
    """What it cost by the service's price list."""
    _show(session, "costs", session.client.usage.costs, span)


def _show(
    session: Session, kind: str, ask: "Callable[..., SyncReport[UsageBucket[Any]]]", span: dict[str, Any]
) -> None:
    by: tuple[str, ...] = span["by"]
    query: dict[str, Any] = {"start_time": int(time.time()) - span["since"], "bucket_width": span["every"]}
    if span["projects"]:
        query["project_ids"] = span["projects"]
    if by and kind != "storage":
        query["group_by"] = [GROUPS[name] for name in by]
    buckets = list(ask(**query))
    if session.json:
        show_json([plain(bucket) for bucket in buckets])
        return
    columns = COLUMNS[kind]
    form = "%Y-%m-%d" if span["every"] == "1d" else "%Y-%m-%d %H:%M"
    rows = [
        # Days are the service's, which are UTC's.
        (
            time.strftime(form, time.gmtime(bucket.start_time)),
            *(getattr(row, GROUPS[name]) for name in by),
            *(column.value(row) for column in columns),
        )
        for bucket in buckets
        for row in bucket.results
    ]
    table(("FROM (UTC)", *(name.upper() for name in by), *(column.title for column in columns)), rows)
