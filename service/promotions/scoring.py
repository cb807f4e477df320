"""Scores: one version on one example by one grader, and what many of them come to."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from service.errors import InvalidRequest
from service.gateway.resolve import Target
from service.jobs import events
from service.jobs.graders import Grader, Loss, ScoreModel
from service.promotions import losses
from service.promotions.asking import Asker, Told
from service.promotions.examples import CHAT, Example
from service.promotions.grading import Sample, fill, grade, number_in
from service.promotions.holding import Scored
from service.registry.models import ScoreRow
from service.usage.ledger import UsageEntry

NO_NUMBER = "the grader's answer has no number"
PROBLEM_LENGTH = 300


@dataclass(frozen=True, slots=True)
class Side:
    """A version that is asked."""

    version: int
    target: Target


async def score(asker: Asker, grader: Grader, side: Side, example: Example) -> Scored:
    """Raises what ends or delays the whole evaluation; what is wrong with one example becomes its `problem`."""
    try:
        if isinstance(grader, Loss):
            value, tokens, told = await losses.measured(asker, side.target, example)
            return Scored(side.version, example.line, value, tokens, None, _cost(told))
        answer = await asker.answer(side.target, example)
    except InvalidRequest as error:
        # Nothing can be said of its loss; any other grader finds no answer there.
        weight = 0.0 if isinstance(grader, Loss) else 1.0
        return Scored(side.version, example.line, 0.0, weight, events.storable(error.message[:PROBLEM_LENGTH]), ())
    sample = Sample(answer.text)
    if not isinstance(grader, ScoreModel):
        value = await grade(grader, example, sample)
        return Scored(side.version, example.line, value, 1.0, None, _cost([answer]))
    said = await _asked(asker, grader, example, sample)
    found = number_in(said.text, grader)
    value, problem = (grader.range[0], NO_NUMBER) if found is None else (found, None)
    return Scored(side.version, example.line, value, 1.0, problem, _cost([answer, said]))


def _cost(told: Sequence[Told]) -> tuple[UsageEntry, ...]:
    return tuple(each.entry for each in told)


async def _asked(asker: Asker, grader: ScoreModel, example: Example, sample: Sample) -> Told:
    settings = grader.sampling_params.model_dump(exclude_none=True)
    if "max_completions_tokens" in settings:
        settings["max_tokens"] = settings.pop("max_completions_tokens")
    messages = [{"role": each.role, "content": fill(each.content, example, sample)} for each in grader.input]
    body: dict[str, Any] = {"messages": messages, **settings}
    target = await asker.gateway.resolver.target(asker.project, grader.model)
    # What a judge does is not its version's traffic, nor anything to copy.
    target = replace(target, version=None, shadow=None)
    return await asker.ask(target, CHAT, body)


def mean(rows: Sequence[ScoreRow], version: int) -> float | None:
    """By weight; None where nothing counts."""
    own = [row for row in rows if row.version == version]
    total = sum(row.weight for row in own)
    return sum(row.score * row.weight for row in own) / total if total else None


def shown(rows: Sequence[ScoreRow], version: int, current: int | None) -> dict[str, Any]:
    """Line by line, as an evaluation keeps it."""
    others = {row.line: row.score for row in rows if row.version == current}
    own = [row for row in rows if row.version == version]
    lines = [
        {"line": row.line, "score": row.score, "current_score": others.get(row.line), "problem": row.problem}
        for row in own
    ]
    return {"examples": len(own), "problems": sum(row.problem is not None for row in own), "lines": lines}
