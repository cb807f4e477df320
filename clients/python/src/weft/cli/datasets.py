"""`weft datasets`: training files looked at here, without a service."""

from pathlib import Path
from typing import Any

import click

from weft.cli.commands import Group, Session, session_of

LOCAL = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(cls=Group)
def datasets() -> None:
    """Check training files offline."""


@datasets.command()
@click.argument("path", type=LOCAL)
@click.option("--purpose", default="fine-tune", show_default=True, type=click.Choice(("fine-tune", "batch")))
@click.option("--compare", type=LOCAL, help="Also find the examples that this file has too.")
@session_of
def check(session: Session, path: Path, purpose: Any, compare: Path | None) -> int:
    """Check PATH by the service's rules.

    The exit status is 1 where some lines cannot be used.
    """
    from weft.cli.reports import show_report
    from weft.datasets import check as checked

    return show_report(session, checked(path, purpose=purpose, compare=compare))
