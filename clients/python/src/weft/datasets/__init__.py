"""Checks a training or batch file before it is uploaded, without a service, by the service's own rules.

    >>> from weft import datasets
    >>> report = datasets.check("broken.jsonl")
    >>> report.ok, report.valid, report.lines
    (False, 1, 2)
    >>> for problem in report.problems:
    ...     print(f"line {problem.line}: {problem.code}. {problem.fix}")
    line 2: no_assistant_message. Add the assistant message that is to be learned.

Checks one line after another, so a file of any size needs little memory. Needs pydantic 2.
"""

import os
from collections.abc import Iterator
from typing import Literal

from weft.datasets.checking import Inspection
from weft.types.files import DatasetReport

__all__ = ["DatasetReport", "check"]

PIECE_BYTES = 1 << 20


def check(
    path: str | os.PathLike[str],
    *,
    purpose: Literal["fine-tune", "batch"] = "fine-tune",
    compare: str | os.PathLike[str] | None = None,
) -> DatasetReport:
    """What is in the file: bad lines with a fix for each, lengths, examples that come twice.

    `compare` names a second file, such as the validation file; `overlap` tells which examples are in both.
    `warnings` says what else would keep a job from being made, such as too few examples.

        >>> datasets.check("train.jsonl", compare="train.jsonl").overlap.examples
        12
    """
    others = None
    if compare is not None:
        other = Inspection(purpose)
        other.read(_pieces(compare))
        others = other.fingerprints
    inspection = Inspection(purpose, others)
    inspection.read(_pieces(path))
    found = inspection.check
    return DatasetReport(
        path=os.fspath(path),
        purpose=purpose,
        format=found.format,
        complete=not found.given_up,
        lines=found.line,
        valid=found.examples,
        problems=found.problems,
        problem_counts=dict(found.counts.most_common()),
        tokens=inspection.lengths(),
        duplicates=inspection.duplicates(),
        overlap=None if compare is None else inspection.overlap(os.fspath(compare)),
    )


def _pieces(path: str | os.PathLike[str]) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece
