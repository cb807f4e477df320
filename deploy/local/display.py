"""What an operator sees of a stack: a live table while it starts on a terminal, plain lines at all other times."""

import os
import sys
import time

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text


class Display:
    """One step of the start is `begin` and then `done` or `failed`; everything later is a `line`."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._began: dict[str, float] = {}
        self._ended: dict[str, tuple[str, float]] = {}
        self._live: Live | None = None

    def __enter__(self) -> "Display":
        if self._console.is_terminal:
            self._live = Live(get_renderable=self._table, console=self._console, refresh_per_second=8)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the live table, leaving its last state on the screen."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def begin(self, step: str) -> None:
        self._began[step] = time.monotonic()
        if self._live is None:
            self.line(f"{step:<10} starting")

    def done(self, step: str) -> None:
        self._end(step, "ready")

    def failed(self, step: str) -> None:
        self._end(step, "failed")

    def line(self, text: str) -> None:
        """One line, at once. Whoever read the other end of a pipe may have left; the stack goes on without them."""
        try:
            self._console.print(Text(text))
            self._console.file.flush()
        except OSError:
            self._console = Console(file=open(os.devnull, "w"), highlight=False)  # noqa: SIM115 - kept to the end
            sys.stdout = self._console.file

    def _end(self, step: str, state: str) -> None:
        seconds = time.monotonic() - self._began[step]
        self._ended[step] = (state, seconds)
        if self._live is None:
            self.line(f"{step:<10} {state} after {seconds:.1f} s")

    def _table(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        for step, began in self._began.items():
            state, seconds = self._ended.get(step, ("starting", time.monotonic() - began))
            mark: RenderableType = Spinner("dots") if state == "starting" else Text("✓" if state == "ready" else "✗")
            style = {"ready": "green", "failed": "red"}.get(state, "yellow")
            table.add_row(mark, step, Text(state, style), f"{seconds:.1f} s")
        return Group(Text("weftd", "bold"), table)
