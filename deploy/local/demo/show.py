"""What the demo shows: stages with their seconds, progress, tables, and what to try. Plain lines without a terminal."""

import json
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

PLAIN_WIDTH = 150
PLAIN_STEPS = 4
"""Without a terminal, a bar is so many lines."""


class Screen:
    def __init__(self) -> None:
        terminal = Console().is_terminal
        self.console = Console(highlight=False, soft_wrap=not terminal, width=None if terminal else PLAIN_WIDTH)
        self.seconds: dict[str, float] = {}

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Announces a stage and remembers how long it took."""
        self.console.print(f"\n[bold]{name}[/bold]")
        began = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - began

    @contextmanager
    def bars(self) -> Iterator["Bars"]:
        columns = (TextColumn("  {task.description:<14}"), BarColumn(), TextColumn("{task.fields[note]}"))
        with Progress(
            *columns, TimeElapsedColumn(), console=self.console, disable=not self.console.is_terminal
        ) as live:
            yield Bars(live, None if self.console.is_terminal else self.say)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        table = Table(*columns, title=title, title_justify="left", show_lines=len(columns) > 4)
        for row in rows:
            table.add_row(*row)
        self.console.print()
        self.console.print(table, soft_wrap=False)


class Bars:
    """One bar a name. May be told from several threads."""

    def __init__(self, live: Progress, say: Callable[[str], None] | None) -> None:
        self._live = live
        self._say = say
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, tuple[str, int]] = {}
        self._lock = threading.Lock()

    def update(self, name: str, done: int, total: int, note: str) -> None:
        with self._lock:
            if name not in self._tasks:
                self._tasks[name] = self._live.add_task(name, note=note)
            text = f"{note} {done}/{total}" if total else note
            self._live.update(self._tasks[name], completed=done, total=total or None, note=text)
            part = (note, done * PLAIN_STEPS // total if total else 0)
            if self._say is not None and self._said.get(name) != part:
                self._said[name] = part
                self._say(f"  {name:<14} {text}")


def curl_lines(url: str, keys: Mapping[str, str], models: Mapping[str, str], question: str) -> list[str]:
    """Three commands to paste: what a tenant has, and the same question to each tenant's model."""
    first, second = keys
    return [
        f"curl -s {url}/v1/models -H 'Authorization: Bearer {keys[first]}'",
        _chat(url, keys[first], {"model": models[first]}, question),
        _chat(url, keys[second], {"model": models[second], "stream": True}, question),
    ]


def _chat(url: str, key: str, options: Mapping[str, object], question: str) -> str:
    body = json.dumps({**options, "temperature": 0, "messages": [{"role": "user", "content": question}]})
    return (
        f"curl -sN {url}/v1/chat/completions -H 'Authorization: Bearer {key}' "
        f"-H 'Content-Type: application/json' -d {shlex.quote(body)}"
    )
