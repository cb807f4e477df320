"""`weft completion`: the script that makes a shell complete our commands and options."""

import click

from weft.cli.commands import Command, Session, session_of
from weft.cli.output import show_json

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_WEFT_COMPLETE"


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(SHELLS))
@session_of
@click.pass_context
def completion(ctx: click.Context, session: Session, shell: str) -> None:
    """Print the completion script of SHELL.

    \b
    bash  eval "$(weft completion bash)"   in ~/.bashrc
    zsh   eval "$(weft completion zsh)"    in ~/.zshrc
    fish  weft completion fish | source    in ~/.config/fish/config.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(ctx.find_root().command, {}, "weft", VARIABLE).source()
    if session.json:
        show_json({"shell": shell, "script": script})
    else:
        click.echo(script)
