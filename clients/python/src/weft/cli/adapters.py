"""`weft adapters`: names for models that stay while what they mean changes."""

from typing import Any

import click

from weft.cli.aliases import COMMANDS as ALIAS_COMMANDS
from weft.cli.columns import ADAPTER, ADAPTERS, RESIDENCY, VERSIONS
from weft.cli.commands import PAGE, Group, Session, listing, session_of
from weft.cli.output import Column, moment, show_item, show_items
from weft.cli.transfers import COMMANDS as TRANSFER_COMMANDS


def source_of(named: str) -> dict[str, str]:
    """Where a version comes from, by the kind of its id."""
    if named.startswith("ftjob-"):
        return {"type": "job", "job_id": named}
    if named.startswith("ftckpt"):
        return {"type": "checkpoint", "checkpoint_id": named}
    return {"type": "model", "model": named}


FROM = "A job, a checkpoint or a model, by its id or name."


@click.group(cls=Group)
def adapters() -> None:
    """Versions, aliases, rollback; push, pull and compare.

    A REFERENCE is name@v3, name@alias, or name for its alias default.
    """


@adapters.command("list")
@click.option("--deleted", is_flag=True, help="Also those that can be restored.")
@listing
@session_of
def list_adapters(session: Session, deleted: bool, limit: int) -> None:
    """List the newest adapters."""
    found = session.client.adapters.list(include_deleted=deleted, limit=min(limit + 1, PAGE))
    show_items(session, found, ADAPTERS, limit)


@adapters.command()
@click.argument("name")
@session_of
def show(session: Session, name: str) -> None:
    """Show the adapter NAME."""
    show_item(session, session.client.adapters.retrieve(name), ADAPTER)


@adapters.command()
@click.argument("name")
@click.option("--from", "source", type=source_of, metavar="SOURCE", help=f"Its first version. {FROM}")
@click.option("--description")
@session_of
def create(session: Session, name: str, source: Any, description: str | None) -> None:
    """Register the adapter NAME."""
    from openai import omit

    made = session.client.adapters.create(name=name, source=source or omit, description=description or omit)
    show_item(session, made, ADAPTER)


@adapters.command()
@click.argument("name")
@click.argument("source", type=source_of, metavar="SOURCE")
@session_of
def add(session: Session, name: str, source: Any) -> None:
    """Make SOURCE the next version of NAME.

    SOURCE is a job, a checkpoint or a model, by its id or name.
    """
    show_item(session, session.client.adapters.versions.create(name, source=source), VERSIONS)


@adapters.command()
@click.argument("name")
@listing
@session_of
def versions(session: Session, name: str, limit: int) -> None:
    """List the newest versions of NAME."""
    show_items(session, session.client.adapters.versions.list(name, limit=min(limit + 1, PAGE)), VERSIONS, limit)


@adapters.command()
@click.argument("name")
@session_of
def delete(session: Session, name: str) -> None:
    """Delete NAME; it can be restored for some time."""
    columns = (Column("NAME", lambda gone: gone.name), Column("PURGED", lambda gone: moment(gone.purged_at)))
    show_item(session, session.client.adapters.delete(name), columns)


@adapters.command()
@click.argument("name")
@session_of
def restore(session: Session, name: str) -> None:
    """Bring NAME back."""
    show_item(session, session.client.adapters.restore(name), ADAPTER)


@adapters.command()
@click.argument("name")
@session_of
def residency(session: Session, name: str) -> None:
    """Show which replicas hold which versions of NAME."""
    show_items(session, session.client.adapters.residency(name), RESIDENCY)


def _told(verb: str, said: str) -> None:
    """A command that asks something for one version."""

    @adapters.command(verb, help=said)
    @click.argument("reference")
    @session_of
    def _(session: Session, reference: str) -> None:
        show_item(session, getattr(session.client.adapters, verb)(reference), VERSIONS)


_told("warm", "Ask for REFERENCE to be loaded before its next request.")
_told("pin", "Ask for REFERENCE to be kept loaded.")
_told("unpin", "End a pin.")

for command in (*ALIAS_COMMANDS, *TRANSFER_COMMANDS):
    adapters.add_command(command)
