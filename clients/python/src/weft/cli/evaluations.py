"""`weft adapters evaluate` and `evaluations`: how good versions are on examples that they were not trained on."""

from typing import Any

import click

from weft.cli.columns import EVALUATIONS
from weft.cli.commands import PAGE, Command, Session, duration, listing, session_of
from weft.cli.failures import FAILED
from weft.cli.graders import HELP, grader_of
from weft.cli.output import say, show_item, show_items
from weft.cli.references import name_alone, version_of


@click.command(cls=Command)
@click.argument("reference")
@click.option("--file", "examples", required=True, metavar="FILE", help="Examples: a file's id, or a path to upload.")
@click.option("--grader", type=grader_of, metavar="GRADER", default="exact_match", show_default=True, help=HELP)
@click.option("--no-wait", is_flag=True, help="Only begin it.")
@click.option("--timeout", type=duration, help="How long to wait; then the exit status is 124.")
@session_of
def evaluate(
    session: Session, reference: str, examples: str, grader: dict[str, Any], no_wait: bool, timeout: int | None
) -> int:
    """Grade the answers of REFERENCE to held-out examples.

    As in `weft adapters evaluate support-bot@v2 --file held-out.jsonl --grader exact_match`. The exit status is 1 where
    it cannot be done.
    """
    from weft.cli.requests import file_id

    evaluations = session.client.adapters.evaluations
    name, number = version_of(session, reference)
    found = evaluations.create(name, version=number, file_id=file_id(session, examples), grader=grader)
    if not no_wait:
        try:
            found = evaluations.wait(name, found.id, timeout=timeout)
        except KeyboardInterrupt:
            say(session, f"The evaluation goes on; see weft adapters evaluations {name}")
            raise
    show_item(session, found, EVALUATIONS)
    return FAILED if found.status == "failed" else 0


@click.command(cls=Command)
@click.argument("name", type=name_alone)
@listing
@session_of
def evaluations(session: Session, name: str, limit: int) -> None:
    """List evaluations of NAME and what came of them."""
    found = session.client.adapters.evaluations.list(name, limit=min(limit + 1, PAGE))
    show_items(session, found, EVALUATIONS, limit)


COMMANDS = (evaluate, evaluations)
