"""`weft projects`: the service's tenants, for administrators."""

import click

from weft.cli.commands import PAGE, Group, Session, listing, session_of
from weft.cli.output import Column, moment, show_item, show_items

COLUMNS = (
    Column("ID", lambda project: project.id),
    Column("NAME", lambda project: project.name),
    Column("STATUS", lambda project: project.status),
    Column("CREATED", lambda project: moment(project.created_at)),
)


@click.group(cls=Group)
def projects() -> None:
    """Projects, for administrators."""


@projects.command("list")
@listing
@session_of
def list_projects(session: Session, limit: int) -> None:
    """List the projects."""
    show_items(session, session.client.projects.list(limit=min(limit + 1, PAGE)), COLUMNS, limit)


@projects.command()
@click.argument("name")
@session_of
def create(session: Session, name: str) -> None:
    """Make the project NAME."""
    show_item(session, session.client.projects.create(name=name), COLUMNS)
