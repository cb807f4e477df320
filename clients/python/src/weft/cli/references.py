"""What a command line says of adapters: NAME, NAME@ALIAS, NAME@v3, and shares of traffic such as v2=10."""

from typing import TYPE_CHECKING

import click

from weft.cli.commands import Session
from weft.cli.failures import Refusal
from weft.resources.references import Reference, named_alias

if TYPE_CHECKING:
    from collections.abc import Iterable


def name_alone(value: str) -> str:
    """An adapter's name, where a whole adapter is meant."""
    if "@" in value:
        raise click.BadParameter(f"{value!r} names a version or an alias; write {value.partition('@')[0]}")
    return value


def alias_of(reference: str, beside: str | None = None) -> tuple[str, str]:
    """The adapter and the alias that is to change, as `bot@prod` or with `prod` beside it. It must be named."""
    if "@" not in reference and beside is None:
        raise _wrong(f"which alias is meant? write {reference}@prod, or {reference}@default for the name alone")
    return named_alias(reference, beside)


def version_of(session: Session, reference: str) -> tuple[str, int]:
    """The adapter and the number of the version that a reference means now."""
    known = Reference.of(reference)
    if known.version is not None:
        return known.adapter, known.version
    return known.adapter, session.client.adapters.aliases.retrieve(known.adapter, known.alias or "").version


def shares_of(given: "Iterable[str]") -> dict[int, float]:
    """By version, from `v1=90` and such."""
    return dict(share_of(each) for each in given)


def share_of(given: str) -> tuple[int, float]:
    named, _, amount = given.partition("=")
    try:
        return int(named.removeprefix("v")), float(amount or 1)
    except ValueError:
        raise _wrong(f"{given!r} is no version with a number; write v2=10") from None


def _wrong(message: str) -> Refusal:
    return Refusal(message, Refusal.USAGE, "usage")
