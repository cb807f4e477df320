"""What every command has: the option --json, the connection to the service, and sources of common arguments."""

from functools import cached_property
from typing import TYPE_CHECKING, Any

import click

from weft.cli.failures import Refusal

if TYPE_CHECKING:
    from weft import Weft

LIMIT = 20


class Session:
    """One run of the command line."""

    def __init__(self) -> None:
        self.base_url: str | None = None
        self.json = False
        self.debug = False

    @cached_property
    def client(self) -> "Weft":
        """Connects nothing yet. Raises Refusal where there is no key."""
        from openai import OpenAIError

        from weft import Weft

        try:
            return Weft(base_url=self.base_url)
        except OpenAIError as error:
            said = "there is no key: set WEFT_API_KEY to your project's key, or WEFT_ADMIN_KEY to an administrator's"
            raise Refusal(said, Refusal.AUTHENTICATION) from error


session_of = click.make_pass_decorator(Session)


def _json(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        ctx.ensure_object(Session).json = True


class Command(click.Command):
    """Takes --json after everything else, too."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        option = click.Option(["--json"], is_flag=True, expose_value=False, callback=_json, help="Print JSON.")
        self.params.append(option)


class Group(click.Group):
    command_class = Command


listing = click.option("--limit", default=LIMIT, show_default=True, type=click.IntRange(min=1), help="At most so many.")
PAGE = 100
"""The most that the service gives at once."""
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def duration(value: str) -> int:
    """Seconds, from `90`, `90s`, `15m`, `12h` or `30d`."""
    number, unit = (value[:-1], value[-1]) if value[-1:] in UNITS else (value, "s")
    if not number.isascii() or not number.isdigit() or int(number) == 0:
        raise click.BadParameter(f"{value!r} is no duration; write 90s, 15m, 12h or 30d")
    return int(number) * UNITS[unit]
