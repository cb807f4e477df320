"""Two models asked the same, and their answers side by side."""

import json
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from weft.cli.commands import Session
from weft.cli.failures import Refusal
from weft.cli.output import console, in_terminal, say, show_json, table, visible

AT_ONCE = 8


@dataclass(frozen=True)
class Question:
    """`expected` is the answer of a training example."""

    messages: list[dict[str, Any]]
    expected: str | None = None

    @property
    def shown(self) -> str:
        return str(self.messages[-1].get("content", ""))


@dataclass(frozen=True)
class Compared:
    question: Question
    answers: tuple[str, ...]

    @property
    def same(self) -> bool:
        return len(set(self.answers)) == 1


def compared(
    session: Session,
    models: tuple[str, str],
    path: Path | None,
    *,
    prompts: tuple[str, ...],
    max_tokens: int,
    system: str | None,
) -> None:
    questions = [_question(line, system) for line in _lines(prompts, path)]
    if not questions:
        raise Refusal("there is no prompt: give --prompt, --file or standard input", Refusal.USAGE, "usage")
    create = session.client.chat.completions.create

    def ask(model: str, question: Question) -> str:
        answer = create(model=model, messages=cast("Any", question.messages), temperature=0, max_tokens=max_tokens)
        return answer.choices[0].message.content or ""

    with ThreadPoolExecutor(AT_ONCE, "weft-compare") as pool:
        asked = [[pool.submit(ask, model, question) for model in models] for question in questions]
        try:
            answered = [tuple(each.result() for each in pair) for pair in asked]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    results = [Compared(question, answers) for question, answers in zip(questions, answered, strict=True)]
    _show(session, models, results)


def _lines(prompts: tuple[str, ...], path: Path | None) -> Iterable[str]:
    if prompts:
        return prompts
    if path is not None:
        return _full(path.read_text(encoding="utf-8").splitlines())
    return [] if sys.stdin.isatty() else _full(sys.stdin.read().splitlines())


def _full(lines: Iterable[str]) -> list[str]:
    return [line for line in lines if line.strip()]


def _question(line: str, system: str | None) -> Question:
    before: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    messages = _example(line)
    if messages is None:
        return Question([*before, {"role": "user", "content": line}])
    last = messages[-1]
    if last.get("role") != "assistant":
        return Question([*before, *messages])
    return Question([*before, *messages[:-1]], str(last.get("content") or ""))


def _example(line: str) -> list[dict[str, Any]] | None:
    """The messages of a line of a training file; any other line is a prompt as it stands."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    messages = cast("dict[str, Any]", value).get("messages") if isinstance(value, dict) else None
    return cast("list[dict[str, Any]]", messages) if isinstance(messages, list) and messages else None


def _show(session: Session, models: tuple[str, str], results: list[Compared]) -> None:
    if session.json:
        show_json([_plain(models, result) for result in results])
        return
    expected = any(result.question.expected is not None for result in results)
    titles = ("PROMPT", *models, *(("EXPECTED",) if expected else ()))
    rows = [
        (result.question.shown, *result.answers, *((result.question.expected,) if expected else ()))
        for result in results
    ]
    if in_terminal():
        _side_by_side(titles, rows)
    else:
        table(titles, rows)
    say(session, _summary(models, results, expected))


def _side_by_side(titles: tuple[str, ...], rows: list[tuple[str | None, ...]]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, show_lines=True, expand=True, pad_edge=False)
    for title in titles:
        made.add_column(Text(visible(title)), ratio=1, overflow="fold")
    for row in rows:
        same = row[1] == row[2]
        made.add_row(*(Text(visible(cell or ""), style="dim" if same else "") for cell in row))
    console().print(made)


def _summary(models: tuple[str, str], results: list[Compared], expected: bool) -> str:
    count = len(results)
    said = f"{sum(result.same for result in results)} of {count} answers are the same"
    if not expected:
        return said
    right = [sum(result.answers[side] == result.question.expected for result in results) for side in (0, 1)]
    return f"{said}; as expected: {models[0]} {right[0]}, {models[1]} {right[1]}"


def _plain(models: tuple[str, str], result: Compared) -> dict[str, object]:
    answers = [{"model": model, "answer": answer} for model, answer in zip(models, result.answers, strict=True)]
    question = result.question
    return {
        "messages": question.messages,
        "expected": question.expected,
        "answers": answers,
        "same": result.same,
    }
