"""`weft adapters`: names for models that stay while what they mean changes."""

from typing import TYPE_CHECKING, Any

import click

from weft.cli.aliases import COMMANDS as ALIAS_COMMANDS
from weft.cli.columns import ADAPTER, ADAPTERS, ALIASES, RESIDENCY, VERSIONS, with_aliases
from weft.cli.commands import PAGE, Group, Session, listing, session_of
from weft.cli.evaluations import COMMANDS as EVALUATION_COMMANDS
from weft.cli.output import Column, moment, show_item, show_items
from weft.cli.references import name_alone
from weft.cli.sharing import COMMANDS as SHARING_COMMANDS
from weft.cli.transfers import COMMANDS as TRANSFER_COMMANDS

if TYPE_CHECKING:
    from weft.types import Adapter


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
    """Versions, aliases, rollback, evaluations; push, pull and compare.

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
@click.argument("reference", metavar="NAME[@VERSION|@ALIAS]")
@session_of
def show(session: Session, reference: str) -> None:
    """Show an adapter, a version or an alias."""
    from weft.resources.references import Reference

    client = session.client.adapters
    known = Reference.of(reference)
    if known.version is not None:
        show_item(session, client.versions.retrieve(known.adapter, known.version), VERSIONS)
    elif "@" in reference:
        show_item(session, client.aliases.retrieve(known.adapter, known.alias or ""), ALIASES)
    else:
        _show(session, client.retrieve(reference))


@adapters.command()
@click.argument("name", type=name_alone)
@click.option("--from", "source", type=source_of, metavar="SOURCE", help=f"Its first version. {FROM}")
@click.option("--description")
@session_of
def create(session: Session, name: str, source: Any, description: str | None) -> None:
    """Register the adapter NAME."""
    from openai import omit

    made = session.client.adapters.create(name=name, source=source or omit, description=description or omit)
    _show(session, made)


@adapters.command()
@click.argument("name", type=name_alone)
@click.argument("source", type=source_of, metavar="SOURCE")
@session_of
def add(session: Session, name: str, source: Any) -> None:
    """Make SOURCE the next version of NAME.

    SOURCE is a job, a checkpoint or a model, by its id or name.
    """
    show_item(session, session.client.adapters.versions.create(name, source=source), VERSIONS)


@adapters.command()
@click.argument("name", type=name_alone)
@listing
@session_of
def versions(session: Session, name: str, limit: int) -> None:
    """List the newest versions of NAME."""
    show_items(session, session.client.adapters.versions.list(name, limit=min(limit + 1, PAGE)), VERSIONS, limit)


@adapters.command()
@click.argument("name", type=name_alone)
@click.option("--description", help='What it is for; "" empties it.')
@click.option("--metadata", multiple=True, metavar="KEY=VALUE", help="In place of all that there is; may be repeated.")
@session_of
def update(session: Session, name: str, description: str | None, metadata: tuple[str, ...]) -> None:
    """Change what is said of NAME."""
    from openai import omit

    if description is None and not metadata:
        raise click.UsageError("give --description or --metadata")
    pairs = {key: value for key, _, value in (each.partition("=") for each in metadata)}
    described = omit if description is None else description or None
    _show(session, session.client.adapters.update(name, description=described, metadata=pairs or omit))


@adapters.command()
@click.argument("name", type=name_alone)
@session_of
def delete(session: Session, name: str) -> None:
    """Delete NAME; it can be restored for some time."""
    columns = (Column("NAME", lambda gone: gone.name), Column("PURGED", lambda gone: moment(gone.purged_at)))
    show_item(session, session.client.adapters.delete(name), columns)


@adapters.command("delete-version")
@click.argument("reference", metavar="NAME@VERSION")
@session_of
def delete_version(session: Session, reference: str) -> None:
    """Delete NAME@VERSION, which no alias may point at."""
    from weft.resources.references import Reference

    known = Reference.of(reference)
    if known.version is None:
        raise click.UsageError(f"{reference!r} names no version; write {known.adapter}@v1")
    columns = (
        Column("MODEL", lambda gone: f"{gone.adapter}@v{gone.version}"),
        Column("DELETED", lambda gone: gone.deleted),
    )
    show_item(session, session.client.adapters.versions.delete(known.adapter, known.version), columns)


@adapters.command()
@click.argument("name", type=name_alone)
@session_of
def restore(session: Session, name: str) -> None:
    """Bring NAME back."""
    _show(session, session.client.adapters.restore(name))


@adapters.command()
@click.argument("name", type=name_alone)
@session_of
def residency(session: Session, name: str) -> None:
    """Show which replicas hold which versions of NAME."""
    show_items(session, session.client.adapters.residency(name), RESIDENCY)


def _show(session: Session, adapter: "Adapter") -> None:
    """The adapter itself tells which version each alias stands for, and not how it splits its traffic."""
    columns = ADAPTER if session.json else with_aliases(session.client.adapters.aliases.list(adapter.name))
    show_item(session, adapter, columns)


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

for command in (*ALIAS_COMMANDS, *EVALUATION_COMMANDS, *SHARING_COMMANDS, *TRANSFER_COMMANDS):
    adapters.add_command(command)
