"""`weft models`: base models and fine-tuned ones, as requests name them."""

import click

from weft.cli.commands import Command, Session, session_of
from weft.cli.output import Column, moment, show_items

COLUMNS = (
    Column("MODEL", lambda model: model.id),
    Column("OWNER", lambda model: model.owned_by),
    Column("CREATED", lambda model: moment(model.created or None)),
)


@click.command(cls=Command)
@session_of
def models(session: Session) -> None:
    """List the models that you can name; registered adapters are under `weft adapters list`."""
    show_items(session, session.client.models.list(), COLUMNS)
