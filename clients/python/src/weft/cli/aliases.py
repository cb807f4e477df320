"""`weft adapters promote`, `rollback`, `split`, `history`: what an adapter's names mean."""

import click

from weft.cli.columns import ALIASES, CHANGES
from weft.cli.commands import PAGE, Command, Session, listing, session_of
from weft.cli.failures import Refusal
from weft.cli.output import Column, show_item, show_items

reason_option = click.option("--reason", help="For the history.")
revision_option = click.option("--if-revision", type=int, help="Only if nobody was faster; 0 for a new alias.")


@click.command(cls=Command)
@click.argument("reference")
@click.argument("alias")
@reason_option
@revision_option
@session_of
def promote(session: Session, reference: str, alias: str, reason: str | None, if_revision: int | None) -> None:
    """Point ALIAS at REFERENCE.

    It gets all of the traffic; splits and shadows end.
    """
    from openai import omit

    revision = omit if if_revision is None else if_revision
    made = session.client.adapters.promote(reference, alias, if_revision=revision, reason=reason or omit)
    show_item(session, made, ALIASES)


@click.command(cls=Command)
@click.argument("name")
@click.argument("alias", default="default")
@reason_option
@session_of
def rollback(session: Session, name: str, alias: str, reason: str | None) -> None:
    """Point ALIAS of NAME back at the version before.

    Splits and shadows end.
    """
    from openai import omit

    show_item(session, session.client.adapters.rollback(name, alias, reason=reason or omit), ALIASES)


@click.command(cls=Command)
@click.argument("name")
@click.argument("alias")
@click.argument("shares", nargs=-1, required=True, metavar="VERSION=WEIGHT...")
@click.option("--shadow", "shadowed", metavar="VERSION=FRACTION", help="Copy some requests to a version.")
@reason_option
@revision_option
@session_of
def split(
    session: Session,
    name: str,
    alias: str,
    shares: tuple[str, ...],
    shadowed: str | None,
    reason: str | None,
    if_revision: int | None,
) -> None:
    """Split the traffic of ALIAS of NAME over versions.

    As in `weft adapters split support-bot prod v1=90 v2=10`.
    The first is the version that the alias stands for where only one can be meant.
    """
    from openai import omit

    parts = [_share(share) for share in shares]
    copied = None if shadowed is None else _share(shadowed)
    made = session.client.adapters.aliases.set(
        name,
        alias,
        version=parts[0][0],
        traffic=[{"version": number, "weight": weight} for number, weight in parts] if len(parts) > 1 else omit,
        shadow=omit if copied is None else {"version": copied[0], "fraction": copied[1]},
        if_revision=omit if if_revision is None else if_revision,
        reason=reason or omit,
    )
    show_item(session, made, ALIASES)


@click.command("aliases", cls=Command)
@click.argument("name")
@session_of
def list_aliases(session: Session, name: str) -> None:
    """List the aliases of NAME."""
    show_items(session, session.client.adapters.aliases.list(name), ALIASES)


@click.command(cls=Command)
@click.argument("name")
@click.argument("alias")
@session_of
def unalias(session: Session, name: str, alias: str) -> None:
    """End ALIAS of NAME; its version stays."""
    columns = (Column("ALIAS", lambda gone: gone.id), Column("DELETED", lambda gone: gone.deleted))
    show_item(session, session.client.adapters.aliases.delete(name, alias), columns)


@click.command(cls=Command)
@click.argument("name")
@click.option("--alias", help="Only this one's.")
@listing
@session_of
def history(session: Session, name: str, alias: str | None, limit: int) -> None:
    """List the changes of NAME's aliases, newest first."""
    from openai import omit

    found = session.client.adapters.history(name, alias=alias or omit, limit=min(limit + 1, PAGE))
    show_items(session, found, CHANGES, limit)


def _share(given: str) -> tuple[int, float]:
    named, _, amount = given.partition("=")
    try:
        return int(named.removeprefix("v")), float(amount or 1)
    except ValueError:
        raise Refusal(f"{given!r} is no version with a number; write v2=10", Refusal.USAGE, "usage") from None


COMMANDS = (promote, rollback, split, list_aliases, unalias, history)
