"""How answers are graded, as it is said on a command line: a word, JSON, or a file with JSON in it."""

import json
from pathlib import Path
from typing import Any, cast

import click

ANSWER, REFERENCE = "{{sample.output_text}}", "{{item.reference}}"
WORDS: dict[str, dict[str, Any]] = {
    "exact_match": {"type": "exact_match"},
    "loss": {"type": "loss"},
    "text_similarity": {
        "type": "text_similarity",
        "name": "similarity",
        "input": ANSWER,
        "reference": REFERENCE,
        "evaluation_metric": "fuzzy_match",
    },
}
HELP = f"{', '.join(WORDS)}, or any grader as JSON or as a file with JSON in it."


def grader_of(value: str) -> dict[str, Any]:
    if value in WORDS:
        return WORDS[value]
    try:
        found: object = json.loads(value if value.lstrip().startswith("{") else Path(value).read_text(encoding="utf-8"))
    except OSError:
        raise click.BadParameter(f"{value!r} is neither {', '.join(WORDS)} nor JSON nor a file") from None
    except ValueError as error:
        raise click.BadParameter(f"{value!r} holds no JSON: {error}") from None
    if not isinstance(found, dict):
        raise click.BadParameter(f"{value!r} holds no JSON object")
    return cast("dict[str, Any]", found)
