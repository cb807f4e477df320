"""`weft completion`: the script that makes a shell complete our commands and options."""

import click

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_WEFT_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of SHELL.

    \b
    bash  eval "$(weft completion bash)"   in ~/.bashrc
    zsh   eval "$(weft completion zsh)"    in ~/.zshrc
    fish  weft completion fish | source    in ~/.config/fish/config.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, "weft", VARIABLE).source())
