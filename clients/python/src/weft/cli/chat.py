"""`weft chat`: one question, or a conversation in a terminal."""

import sys
from typing import Any

import click

from weft.cli.commands import Command, Session, session_of


@click.command(cls=Command)
@click.argument("model")
@click.argument("prompt", required=False)
@click.option("--system", help="What the model is told first.")
@click.option("--temperature", type=click.FloatRange(min=0))
@click.option("--max-tokens", type=click.IntRange(min=1))
@click.option("--seed", type=int)
@session_of
def chat(session: Session, model: str, prompt: str | None, system: str | None, **sampling: Any) -> None:
    """Talk to MODEL: a base model, a fine-tuned one, or an adapter such as support-bot@prod.

    With PROMPT, or with a prompt from standard input, there is one answer; both are put together. Otherwise it is a
    conversation: /reset begins anew, Ctrl-C stops an answer, Ctrl-D ends it.
    """
    from weft.cli.talking import Conversation, asked_once, converse

    asked = {name: value for name, value in sampling.items() if value is not None}
    conversation = Conversation(session, model, system, asked)
    piped = "" if sys.stdin.isatty() else sys.stdin.read().strip()
    question = "\n\n".join(part for part in (prompt, piped) if part)
    if question:
        asked_once(conversation, question)
    elif not sys.stdin.isatty():
        raise click.UsageError("standard input is empty, and there is no PROMPT")
    elif session.json:
        raise click.UsageError("--json needs a PROMPT")
    else:
        converse(conversation)
