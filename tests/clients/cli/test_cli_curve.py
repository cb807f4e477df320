"""Curves of characters."""

import io
import math

import pytest
from rich.console import Console

from weft.cli.curve import Chart


def drawn(chart: Chart) -> list[str]:
    console = Console(file=io.StringIO(), width=chart.width)
    return [line.plain for line in chart.__rich_console__(console, console.options)]


def test_a_falling_line() -> None:
    chart = Chart({"loss": {1: 3.0, 2: 2.0, 3: 1.0}}, last_step=3, width=19, height=3, fine=False)
    assert drawn(chart) == [
        "      3 |***       ",
        "      2 |   ****   ",
        "      1 |       ***",
        "         * loss   step 3",
    ]


def test_what_is_left_to_do_is_empty() -> None:
    chart = Chart({"loss": {1: 1.0, 50: 0.0}}, last_step=100, width=29, height=4)
    assert all(line[9:].rstrip() and set(line[20:]) <= {" ", "⠀"} for line in drawn(chart)[:-1])


@pytest.mark.parametrize("values", [{}, {1: 1.0}, {1: 1.0, 2: 1.0}, {1: math.nan, 2: math.inf}, {5000: 1e300}])
def test_odd_series(values: dict[int, float]) -> None:
    lines = drawn(Chart({"loss": values}, last_step=2, width=30, height=5))
    assert len(lines) == 6


@pytest.mark.parametrize("value", [0.000982, -0.000982, 1234567.0, -1234567.0, -1e-100])
def test_every_number_has_room_beside_the_curve(value: float) -> None:
    lines = drawn(Chart({"loss": {1: value, 2: value * 2}}, last_step=2, width=30, height=3))
    assert all(line.index("┤") == 8 for line in lines[:-1])
    assert {len(line) for line in lines[:-1]} == {30}


def test_many_steps_are_one_mean_for_each_column() -> None:
    values = {step: float(step % 2) for step in range(1, 10_001)}
    lines = drawn(Chart({"loss": values}, last_step=10_000, width=39, height=9, fine=False))
    assert sum("*" in line for line in lines[:-1]) <= 2
