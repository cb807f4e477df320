"""The demo's own parts: what counts as met, what is printed without a terminal, and commands that survive a paste."""

import json
import shlex

import pytest
from rich.progress import Progress

from deploy.local.demo.__main__ import Score
from deploy.local.demo.show import Bars, curl_lines


@pytest.mark.parametrize(
    ("base", "own", "other", "met"),
    [(0.10, 0.90, 0.20, True), (0.11, 1, 0, False), (0, 0.89, 0, False), (0, 1, 0.21, False)],
)
def test_targets(base: float, own: float, other: float, met: bool) -> None:
    assert Score(base, own, other).meets_targets is met


def test_a_bar_without_a_terminal_is_a_few_lines() -> None:
    said: list[str] = []
    bars = Bars(Progress(disable=True), said.append)
    bars.update("a", 0, 0, "queued")
    for step in range(101):
        bars.update("a", step, 100, "running")
    assert [line.split() for line in said] == [
        ["a", "queued"],
        *(["a", "running", f"{step}/100"] for step in (0, 25, 50, 75, 100)),
    ]


def test_curl_lines_can_be_pasted_whatever_the_question() -> None:
    question = "It's \"quoted\" & $dear\nisn't it?"
    models = {"one": "ft:base:weft:one:1", "two": "ft:base:weft:two:2"}
    lines = curl_lines("http://127.0.0.1:1", {"one": "sk-1", "two": "sk-2"}, models, question)
    assert len(lines) == 3
    for line, model in zip(lines[1:], models.values(), strict=True):
        body = json.loads(shlex.split(line)[-1])
        assert body["model"] == model
        assert body["messages"][0]["content"] == question
