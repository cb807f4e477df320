"""`weft adapters promote`, `split`, `guard`, `rollback`, `history` and such: what an adapter's names mean."""

import click

from weft.cli.columns import ALIASES, CHANGES, TRAFFIC
from weft.cli.commands import PAGE, Command, Session, duration, listing, session_of
from weft.cli.output import Column, show_item, show_items
from weft.cli.references import alias_of, name_alone, share_of, shares_of

reason_option = click.option("--reason", help="For the history.")
revision_option = click.option("--if-revision", type=int, help="Only if nobody was faster; 0 for a new alias.")
aliased = click.argument("reference", metavar="NAME@ALIAS")
beside = click.argument("alias", required=False, metavar="[ALIAS]")


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

    name, _, _ = reference.partition("@")
    if "@" in alias:
        adapter, alias = alias_of(alias)
        if adapter != name:
            raise click.UsageError(f"{adapter}@{alias} is not {name}'s")
    revision = omit if if_revision is None else if_revision
    made = session.client.adapters.promote(reference, alias, if_revision=revision, reason=reason or omit)
    show_item(session, made, ALIASES)


@click.command(cls=Command)
@aliased
@beside
@reason_option
@session_of
def rollback(session: Session, reference: str, alias: str | None, reason: str | None) -> None:
    """Point an alias back at the version before.

    As in `weft adapters rollback support-bot@prod`. Splits and shadows end.
    """
    from openai import omit

    made = session.client.adapters.rollback(*alias_of(reference, alias), reason=reason or omit)
    show_item(session, made, ALIASES)


@click.command(cls=Command)
@aliased
@click.argument("words", nargs=-1, required=True, metavar="VERSION=WEIGHT...")
@click.option("--shadow", "shadowed", metavar="VERSION=FRACTION", help="Copy some requests to a version.")
@reason_option
@revision_option
@session_of
def split(
    session: Session,
    reference: str,
    words: tuple[str, ...],
    shadowed: str | None,
    reason: str | None,
    if_revision: int | None,
) -> None:
    """Split the traffic of an alias over versions.

    As in `weft adapters split support-bot@prod v1=90 v2=10`. The first is the version that the alias stands for where
    only one can be meant.
    """
    from openai import omit

    beside, shares = (None, words) if "@" in reference or "=" in words[0] else (words[0], words[1:])
    name, alias = alias_of(reference, beside)
    copied = None if shadowed is None else share_of(shadowed)
    made = session.client.adapters.split(
        f"{name}@{alias}",
        shares_of(shares),
        shadow=omit if copied is None else {"version": copied[0], "fraction": copied[1]},
        if_revision=omit if if_revision is None else if_revision,
        reason=reason or omit,
    )
    show_item(session, made, ALIASES)


@click.command(cls=Command)
@aliased
@click.option("--max-error-rate", type=click.FloatRange(0, 1, max_open=True), help="Such as 0.05.")
@click.option("--min-requests", type=click.IntRange(1), help="Judge no fewer.  [default: 20]")
@click.option("--window", type=duration, help="Judge those of the last such time.  [default: 5m]")
@click.option("--off", is_flag=True, help="Guard it no longer.")
@reason_option
@session_of
def guard(
    session: Session,
    reference: str,
    max_error_rate: float | None,
    min_requests: int | None,
    window: int | None,
    off: bool,
    reason: str | None,
) -> None:
    """Roll an alias back by itself where too many requests fail.

    As in `weft adapters guard support-bot@prod --max-error-rate 0.05`. It goes on for all that the alias will stand
    for; its traffic stays as it is.
    """
    from openai import omit

    if (max_error_rate is None) != off:
        raise click.UsageError("give --max-error-rate, or --off to end it")
    rule = {"max_error_rate": max_error_rate, "min_requests": min_requests, "window_seconds": window}
    given = None if off else {name: value for name, value in rule.items() if value is not None}
    name, alias = alias_of(reference)
    made = session.client.adapters.guard(f"{name}@{alias}", given, reason=reason or omit)  # pyright: ignore[reportArgumentType]
    show_item(session, made, ALIASES)


@click.command("traffic", cls=Command)
@aliased
@session_of
def show_traffic(session: Session, reference: str) -> None:
    """Show what became of an alias's requests, by version.

    Since the alias last changed, and some seconds behind.
    """
    name, alias = alias_of(reference)
    found = session.client.adapters.aliases.traffic(name, alias)
    if session.json:
        show_item(session, found, ())
    else:
        show_items(session, found.versions, TRAFFIC)


@click.command("aliases", cls=Command)
@click.argument("name", type=name_alone)
@session_of
def list_aliases(session: Session, name: str) -> None:
    """List the aliases of NAME."""
    show_items(session, session.client.adapters.aliases.list(name), ALIASES)


@click.command(cls=Command)
@aliased
@beside
@session_of
def unalias(session: Session, reference: str, alias: str | None) -> None:
    """End an alias; its version stays."""
    columns = (Column("ALIAS", lambda gone: gone.id), Column("DELETED", lambda gone: gone.deleted))
    show_item(session, session.client.adapters.aliases.delete(*alias_of(reference, alias)), columns)


@click.command(cls=Command)
@click.argument("reference", metavar="NAME[@ALIAS]")
@click.option("--alias", help="Only this one's.")
@listing
@session_of
def history(session: Session, reference: str, alias: str | None, limit: int) -> None:
    """List changes of an adapter's aliases, newest first."""
    from openai import omit

    found = session.client.adapters.history(reference, alias=alias or omit, limit=min(limit + 1, PAGE))
    show_items(session, found, CHANGES, limit)


COMMANDS = (promote, rollback, split, guard, show_traffic, list_aliases, unalias, history)
