"""Curves of numbers over steps, drawn with characters of eight braille dots, or where these lack of one mark."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.text import Text

COLORS = ("cyan", "yellow", "magenta", "green")
MARKS = "*o+x"
BRAILLE = 0x2800
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of a braille character, by row and column of the dot."""
SCALE, MARGIN = 7, 9
"""Characters on the left, of a number and in all."""


@dataclass
class Canvas:
    """A grid of characters, each of `across` by `down` dots. A character has the colour of its last dot."""

    width: int
    height: int
    fine: bool
    bits: dict[tuple[int, int], int] = field(default_factory=dict[tuple[int, int], int])
    owners: dict[tuple[int, int], int] = field(default_factory=dict[tuple[int, int], int])

    @property
    def across(self) -> int:
        return self.width * (2 if self.fine else 1)

    @property
    def down(self) -> int:
        return self.height * (4 if self.fine else 1)

    def dot(self, x: int, y: int, series: int) -> None:
        """`y` counts from the top."""
        place = (x // 2, y // 4) if self.fine else (x, y)
        bit = DOTS[y % 4][x % 2] if self.fine else 1
        self.bits[place] = self.bits.get(place, 0) | bit
        self.owners[place] = series

    def line(self, first: tuple[int, int], last: tuple[int, int], series: int) -> None:
        steps = max(abs(last[0] - first[0]), abs(last[1] - first[1]), 1)
        for step in range(steps + 1):
            x = first[0] + round((last[0] - first[0]) * step / steps)
            y = first[1] + round((last[1] - first[1]) * step / steps)
            self.dot(x, y, series)

    def row(self, y: int) -> "Iterator[tuple[str, str]]":
        """Each character of a row with its colour."""
        for x in range(self.width):
            bits, owner = self.bits.get((x, y), 0), self.owners.get((x, y), 0)
            drawn = " " if not bits else chr(BRAILLE + bits) if self.fine else MARKS[owner % len(MARKS)]
            yield drawn, COLORS[owner % len(COLORS)] if bits else ""


@dataclass(frozen=True)
class Chart:
    """Series by name, each a value by step. Steps go from 1 to `last_step`, so that the empty part is what is left."""

    series: Mapping[str, Mapping[int, float]]
    last_step: int
    width: int = 80
    height: int = 12
    fine: bool = True

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.text import Text

        low, high = self._range()
        canvas = self._drawn(low, high)
        for y in range(self.height):
            value = high - (high - low) * y / max(self.height - 1, 1)
            scale = _scale(value) if y in (0, self.height // 2, self.height - 1) else ""
            edge = "┤" if self.fine else "|"
            yield Text.assemble((f"{scale:>{SCALE}} {edge}", "dim"), *canvas.row(y))
        yield self._foot(canvas.width)

    def _foot(self, width: int) -> "Text":
        from rich.text import Text

        named = Text(" " * MARGIN)
        for number, name in enumerate(name for name, values in self.series.items() if values):
            mark = "━" if self.fine else MARKS[number]
            named.append(f"{mark} {name}   ", style=COLORS[number])
        last = f"step {self.last_step}"
        named.append(f"{last:>{max(MARGIN + width - len(named.plain), len(last))}}", style="dim")
        return named

    def _range(self) -> tuple[float, float]:
        values = [value for series in self.series.values() for value in series.values() if math.isfinite(value)]
        low, high = min(values, default=0.0), max(values, default=1.0)
        around = abs(low) / 10 or 0.5
        return (low, high) if high > low else (low - around, high + around)

    def _drawn(self, low: float, high: float) -> Canvas:
        canvas = Canvas(max(self.width - MARGIN, 10), self.height, self.fine)
        for number, values in enumerate(self.series.values()):
            before: tuple[int, int] | None = None
            for x, value in self._columns(values, canvas.across):
                place = (x, round((high - value) / (high - low) * (canvas.down - 1)))
                canvas.line(before or place, place, number)
                before = place
        return canvas

    def _columns(self, values: Mapping[int, float], across: int) -> list[tuple[int, float]]:
        """The mean of the steps that fall into each column of dots."""
        found: dict[int, list[float]] = {}
        for step, value in sorted(values.items()):
            if math.isfinite(value):
                x = round((step - 1) / max(self.last_step - 1, 1) * (across - 1))
                found.setdefault(min(max(x, 0), across - 1), []).append(value)
        return [(x, sum(group) / len(group)) for x, group in found.items()]


def _scale(value: float) -> str:
    """With as many digits as there is room for."""
    return next(shown for digits in (3, 2, 1) if len(shown := f"{value:.{digits}g}") <= SCALE)
