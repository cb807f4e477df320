"""`weft keys`: who may use a project, for administrators."""

import sys
from typing import TYPE_CHECKING

import click

from weft.cli.commands import PAGE, Group, Session, duration, listing, session_of
from weft.cli.output import Column, in_terminal, moment, say, show_item, show_items

if TYPE_CHECKING:
    from weft.types import NewKey

COLUMNS = (
    Column("ID", lambda key: key.id),
    Column("NAME", lambda key: key.name),
    Column("KEY", lambda key: key.redacted_value),
    Column("SCOPES", lambda key: ", ".join(key.scopes) or "all"),
    Column("CREATED", lambda key: moment(key.created_at)),
    Column("LAST USED", lambda key: moment(key.last_used_at)),
    Column("EXPIRES", lambda key: moment(key.expires_at)),
)
SECRET = (
    Column("ID", lambda key: key.id),
    Column("NAME", lambda key: key.name),
    Column("VALUE", lambda key: key.value),
)

project_option = click.option(
    "--project", "project_id", required=True, envvar="WEFT_PROJECT", metavar="ID", help="[default: WEFT_PROJECT]"
)


@click.group(cls=Group)
def keys() -> None:
    """Keys of projects, for administrators."""


@keys.command("list")
@project_option
@listing
@session_of
def list_keys(session: Session, project_id: str, limit: int) -> None:
    """List a project's keys, without their values."""
    found = session.client.keys.list(project_id=project_id, limit=min(limit + 1, PAGE))
    show_items(session, found, COLUMNS, limit)


@keys.command()
@click.argument("name")
@project_option
@click.option("--scope", "scopes", multiple=True, help="What it may do; may be given again.  [default: everything]")
@click.option("--expires", type=duration, help="When it ends, such as 30d.")
@session_of
def create(session: Session, name: str, project_id: str, scopes: tuple[str, ...], expires: int | None) -> None:
    """Make the key NAME. Its value is shown once; in a pipe it is all that is printed."""
    from openai import omit

    made = session.client.keys.create(
        project_id=project_id, name=name, scopes=scopes or omit, expires_in_seconds=expires or omit
    )
    _show_secret(session, made)


@keys.command()
@click.argument("key_id")
@project_option
@click.option("--grace", type=duration, help="How long the old one goes on, such as 1h.")
@session_of
def rotate(session: Session, key_id: str, project_id: str, grace: int | None) -> None:
    """Make a new key in place of KEY_ID."""
    from openai import omit

    _show_secret(session, session.client.keys.rotate(key_id, project_id=project_id, grace_seconds=grace or omit))


@keys.command()
@click.argument("key_id")
@project_option
@session_of
def revoke(session: Session, key_id: str, project_id: str) -> None:
    """End KEY_ID; within seconds nobody can use it."""
    columns = (Column("ID", lambda key: key.id), Column("REVOKED", lambda key: key.deleted))
    show_item(session, session.client.keys.delete(key_id, project_id=project_id), columns)


def _show_secret(session: Session, key: "NewKey") -> None:
    if session.json or in_terminal():
        show_item(session, key, SECRET)
        say(session, "Keep the value; it is not shown again.")
    else:
        sys.stdout.write(key.value + "\n")
