"""`weft` itself: its options, its commands by name, and how each run ends.

A command's module is imported when the command is used; the help is written from the table here.
"""

import importlib
import os
import sys

import click

from weft.cli.commands import Session
from weft.cli.failures import INTERRUPTED, PIPE_CLOSED, Failure, report

COMMANDS = {
    "adapters": ("adapters", "Versions, aliases, rollback, evaluations; push, pull and compare."),
    "chat": ("chat", "Talk to a model."),
    "completion": ("completion", "Print the completion script of a shell."),
    "datasets": ("datasets", "Check training files offline."),
    "files": ("files", "Upload, check and fetch files."),
    "jobs": ("jobs", "Train models and watch them learn."),
    "keys": ("keys", "Keys of projects, for administrators."),
    "models": ("models", "List the models that you can name."),
    "projects": ("projects", "Projects, for administrators."),
    "usage": ("usage", "What was used and what it cost, for administrators."),
}
EPILOG = "WEFT_API_KEY holds your project's key, WEFT_ADMIN_KEY an administrator's, WEFT_BASE_URL the address."


class ReaderGone(Exception):
    """Nobody reads our output any more."""


class LazyGroup(click.Group):
    """Knows its commands by name; the module of one is imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return getattr(importlib.import_module(f"weft.cli.{COMMANDS[cmd_name][0]}"), cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, said) for name, (_, said) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> object:
        try:
            ended = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError as error:
            # By its own name, since click would make it the exit status of a failure.
            raise ReaderGone from error
        return ended


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(version("weft"))
        ctx.exit()


@click.group(cls=LazyGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--base-url", metavar="URL", help="The service's address.  [default: WEFT_BASE_URL]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; also after every command.")
@click.option("--debug", is_flag=True, help="Show where an error came from.")
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print it.")
@click.pass_obj
def weft(session: Session, base_url: str | None, as_json: bool, debug: bool) -> None:
    """Fine-tune models, serve them and keep track of them, on a Weft service."""
    session.base_url = base_url
    session.json = as_json
    session.debug = debug


def run(arguments: list[str]) -> int:
    """The exit status; what went wrong is said in one line."""
    for stream in (sys.stdout, sys.stderr):
        # What the terminal cannot show must not be an error.
        stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue,reportUnknownMemberType]
    session = Session()
    try:
        ended = weft.main(arguments, prog_name="weft", standalone_mode=False, obj=session)
    except click.Abort:
        return INTERRUPTED
    except ReaderGone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except click.ClickException as error:
        return report(Failure.of_usage(error), "--json" in arguments)
    except Exception as error:
        if session.debug:
            raise
        return report(Failure.of(error), "--json" in arguments)
    return ended if isinstance(ended, int) else 0
