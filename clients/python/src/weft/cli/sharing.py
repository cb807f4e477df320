"""`weft adapters share`, `unshare` and `permissions`: other projects that may use an adapter, for administrators."""

import click

from weft.cli.columns import PERMISSIONS
from weft.cli.commands import PAGE, Command, Session, listing, session_of
from weft.cli.failures import NOT_FOUND, Refusal
from weft.cli.output import show_items
from weft.cli.references import name_alone

projects = click.argument("projects", nargs=-1, required=True, metavar="PROJECT_ID...")


@click.command(cls=Command)
@click.argument("name", type=name_alone)
@projects
@session_of
def share(session: Session, name: str, projects: tuple[str, ...]) -> None:
    """Let other projects use NAME.

    It needs an administrator's key. Where several projects have an adapter of the name, give its id.
    """
    show_items(session, session.client.adapters.permissions.create(name, project_ids=projects), PERMISSIONS)


@click.command(cls=Command)
@click.argument("name", type=name_alone)
@projects
@session_of
def unshare(session: Session, name: str, projects: tuple[str, ...]) -> None:
    """Let projects use NAME no longer."""
    permissions = session.client.adapters.permissions
    found = {each.project_id: each for each in permissions.list(name, limit=PAGE)}
    missing = [project for project in projects if project not in found]
    if missing:
        raise Refusal(f"{name} is not shared with {', '.join(missing)}", NOT_FOUND, "permission_not_found")
    for project in projects:
        permissions.delete(found[project].id, adapter=name)
    show_items(session, [found[project] for project in projects], PERMISSIONS)


@click.command("permissions", cls=Command)
@click.argument("name", type=name_alone)
@listing
@session_of
def list_permissions(session: Session, name: str, limit: int) -> None:
    """List the other projects that may use NAME."""
    found = session.client.adapters.permissions.list(name, limit=min(limit + 1, PAGE))
    show_items(session, found, PERMISSIONS, limit)


COMMANDS = (share, unshare, list_permissions)
