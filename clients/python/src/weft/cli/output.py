"""How results are shown: as tables in a terminal, as tab-separated lines in a pipe, as JSON where that is asked for."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from weft.cli.commands import Session

if TYPE_CHECKING:
    from openai import BaseModel
    from rich.console import Console
    from rich.text import Text

ItemT = TypeVar("ItemT", bound="BaseModel")
STYLES = {
    "succeeded": "green",
    "processed": "green",
    "active": "green",
    "running": "cyan",
    "queued": "yellow",
    "paused": "yellow",
    "failed": "red",
    "error": "red",
    "cancelled": "red",
}
NOTHING = "-"
CONTROL = {number: "�" for number in (*range(32), *range(127, 160)) if chr(number) not in "\t\n"}
UNITS = ("B", "KB", "MB", "GB", "TB")


@dataclass(frozen=True)
class Column:
    """`value` of each row's object; a number is set to the right."""

    title: str
    value: Callable[[Any], object]


@cache
def console() -> "Console":
    """Colours only where a terminal shows them and NO_COLOR is not set."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False)


def in_terminal() -> bool:
    return sys.stdout.isatty()


def say(session: Session, message: str) -> None:
    """A remark for people, beside the result."""
    if not session.json:
        sys.stderr.write(visible(message) + "\n")


def show_items(session: Session, items: Iterable[ItemT], columns: Sequence[Column], limit: int | None = None) -> None:
    """A list; of one that goes on, the first `limit`."""
    found = list(items if limit is None else islice(items, limit + 1))
    shown = found if limit is None else found[:limit]
    if session.json:
        show_json([plain(item) for item in shown])
    else:
        table([column.title for column in columns], [[column.value(item) for column in columns] for item in shown])
        if len(shown) < len(found) and in_terminal():
            say(session, f"The first {limit}; --limit shows more.")


def show_item(session: Session, item: "BaseModel", columns: Sequence[Column]) -> None:
    """One thing, each of its fields on a line; those that it does not have are left out."""
    if session.json:
        show_json(plain(item))
        return
    fields = [(column.title, column.value(item)) for column in columns]
    details({title: value for title, value in fields if value not in (None, "", [], {})})


def plain(item: "BaseModel") -> dict[str, Any]:
    """As the service sent it."""
    return item.to_dict(mode="json")


def show_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def show_json_line(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def table(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    if not in_terminal():
        for row in rows:
            sys.stdout.write("\t".join(_cell(value) for value in row) + "\n")
        return
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for number, title in enumerate(titles):
        kinds = {type(row[number]) for row in rows} - {type(None)}
        made.add_column(title, justify="right" if kinds and kinds <= {int, float} else "left", overflow="fold")
    for row in rows:
        made.add_row(*map(styled, row))
    console().print(made)


def details(fields: Mapping[str, object]) -> None:
    if not in_terminal():
        for title, value in fields.items():
            sys.stdout.write(f"{title}\t{_cell(value)}\n")
        return
    from rich.table import Table

    made = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for title, value in fields.items():
        made.add_row(title, styled(value))
    console().print(made)


def styled(value: object) -> "Text":
    from rich.text import Text

    shown = visible(_text(value))
    return Text(shown, style=STYLES.get(shown, "dim" if shown == NOTHING else ""))


def visible(text: str) -> str:
    """Without the characters with which a text could take over the terminal that shows it."""
    return text.translate(CONTROL)


def _cell(value: object) -> str:
    return visible(" ".join(_text(value).split()))


def _text(value: object) -> str:
    if value is None or value == "":
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def moment(seconds: float | None) -> str | None:
    """A time since 1970, here."""
    return None if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def size(count: int | None) -> str | None:
    if count is None:
        return None
    amount, unit = float(count), 0
    while amount >= 1000 and unit < len(UNITS) - 1:
        amount, unit = amount / 1000, unit + 1
    return f"{count} B" if unit == 0 else f"{amount:.1f} {UNITS[unit]}"


def pairs(values: Mapping[str, object] | None) -> str | None:
    return ", ".join(f"{name}={value}" for name, value in values.items()) if values else None
