"""What a grader makes of one answer. Texts of any length and kind come in; nothing here asks a model."""

import asyncio
import re
from dataclasses import dataclass
from typing import Any, cast

import orjson

from service.errors import InvalidRequest
from service.jobs.graders import PLACEHOLDER, ExactMatch, ScoreModel, StringCheck, TextSimilarity
from service.promotions.examples import Example
from service.promotions.similarity import similarity

NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d{1,3})?")
RESULTS = ("result", "score")


@dataclass(frozen=True, slots=True)
class Sample:
    """A model's answer, as templates see it."""

    output_text: str

    @property
    def output_json(self) -> Any:
        try:
            return orjson.loads(self.output_text)
        except orjson.JSONDecodeError:
            return None


async def grade(grader: StringCheck | TextSimilarity | ExactMatch, example: Example, sample: Sample) -> float:
    """From 0 to 1. Raises InvalidRequest where a template names a field that the example lacks."""
    if isinstance(grader, ExactMatch):
        return float(sample.output_text.strip() == example.reference.strip())
    one, other = fill(grader.input, example, sample), fill(grader.reference, example, sample)
    if isinstance(grader, StringCheck):
        return float(_checked(grader.operation, one, other))
    return await asyncio.to_thread(similarity, grader.evaluation_metric, one, other)


def number_in(text: str, grader: ScoreModel) -> float | None:
    """The number that a grading model's answer gives, within the grader's range; None where there is none."""
    found: object = None
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        numbers = NUMBER.findall(text)
        found = float(numbers[-1]) if numbers else None
    if isinstance(found, dict):
        told = cast("dict[str, object]", found)
        found = next((told[name] for name in RESULTS if name in told), None)
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None
    low, high = grader.range
    return min(max(float(found), low), high)


def fill(template: str, example: Example, sample: Sample) -> str:
    def value(match: re.Match[str]) -> str:
        root, *path = match[1].strip().split(".")
        if root == "sample":
            found = sample.output_text if path[0] == "output_text" else _inside(sample.output_json, path[1:])
        else:
            found = _inside(example.item, path)
            if found is None:
                raise InvalidRequest(
                    f"The grader asks for '{match[1].strip()[:64]}', and the example in line {example.line} has no "
                    "such field.",
                    code="invalid_grader",
                    param="grader",
                )
        return found if isinstance(found, str) else "" if found is None else orjson.dumps(found).decode()

    return PLACEHOLDER.sub(value, template)


def _inside(value: Any, path: list[str]) -> Any:
    for name in path:
        if isinstance(value, dict):
            value = cast("dict[str, Any]", value).get(name)
        elif isinstance(value, list) and name.isascii() and name.isdecimal() and int(name[:9]) < len(value):  # pyright: ignore[reportUnknownArgumentType]
            value = cast("list[Any]", value)[int(name[:9])]
        else:
            return None
    return value


def _checked(operation: str, one: str, other: str) -> bool:
    match operation:
        case "eq":
            return one == other
        case "ne":
            return one != other
        case "like":
            return other in one
        case _:
            return other.casefold() in one.casefold()
