"""`weft files`: training data and what the service thinks of it."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weft.cli.commands import PAGE, Command, Group, Session, listing, session_of
from weft.cli.output import Column, moment, show_item, show_items, size

if TYPE_CHECKING:
    from openai.types import FileObject

PURPOSES = ("fine-tune", "batch", "user_data", "evals")
COLUMNS = (
    Column("ID", lambda file: file.id),
    Column("NAME", lambda file: file.filename),
    Column("SIZE", lambda file: size(file.bytes)),
    Column("PURPOSE", lambda file: file.purpose),
    Column("STATUS", lambda file: file.status),
    Column("CREATED", lambda file: moment(file.created_at)),
)
DETAILS = (*COLUMNS, Column("EXPIRES", lambda file: moment(file.expires_at)))


@click.group(cls=Group)
def files() -> None:
    """Upload, check and fetch files."""


@files.command()
@click.argument("path", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--purpose", default="fine-tune", show_default=True, type=click.Choice(PURPOSES))
@session_of
def upload(session: Session, path: Path, purpose: Any) -> None:
    """Upload the file PATH, of any size."""
    show_item(session, sent(session, path, purpose), DETAILS)


@files.command("list")
@click.option("--purpose", type=click.Choice(PURPOSES), help="Only these.")
@listing
@session_of
def list_files(session: Session, purpose: str | None, limit: int) -> None:
    """List the newest files."""
    only: dict[str, Any] = {"purpose": purpose} if purpose else {}
    show_items(session, session.client.files.list(limit=min(limit + 1, PAGE), **only), COLUMNS, limit)


@files.command()
@click.argument("file_id")
@session_of
def show(session: Session, file_id: str) -> None:
    """Show the file FILE_ID."""
    show_item(session, session.client.files.retrieve(file_id), DETAILS)


@files.command()
@click.argument("file_id")
@click.option("--compare", metavar="FILE_ID", help="Also find the examples that this file has too.")
@session_of
def check(session: Session, file_id: str, compare: str | None) -> int:
    """Report on the lines of FILE_ID.

    The exit status is 1 where some cannot be used.
    """
    from openai import omit

    from weft.cli.reports import show_report

    return show_report(session, session.client.files.validation(file_id, compare=compare or omit))


@files.command()
@click.argument("file_id")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Where to; else standard output.")
@session_of
def fetch(session: Session, file_id: str, output: Path | None) -> None:
    """Fetch what is in FILE_ID."""
    with session.client.files.with_streaming_response.content(file_id) as answer:
        if output is None:
            for piece in answer.iter_bytes():
                sys.stdout.buffer.write(piece)
            return
        # Beside its place first, so that a broken transfer leaves what was there.
        partial = output.with_name(f".{output.name}.partial")
        try:
            answer.stream_to_file(partial)
            partial.replace(output)
        finally:
            partial.unlink(missing_ok=True)


@files.command(cls=Command)
@click.argument("file_ids", nargs=-1, required=True, metavar="FILE_ID...")
@session_of
def delete(session: Session, file_ids: tuple[str, ...]) -> None:
    """Delete files."""
    columns = (Column("ID", lambda file: file.id), Column("DELETED", lambda file: file.deleted))
    show_items(session, [session.client.files.delete(file_id) for file_id in file_ids], columns)


def sent(session: Session, path: Path, purpose: Any) -> "FileObject":
    """The uploaded file; a terminal shows how far it is."""
    from weft.cli.progress import shown

    with shown(session, f"Upload {path.name}") as tell:
        return session.client.files.upload(path, purpose, on_progress=tell)
