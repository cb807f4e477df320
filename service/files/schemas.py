"""Bodies of the files routes, exactly OpenAI's."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.files.datasets import described
from service.files.inspection import Findings
from service.files.models import FileRow
from service.listing import Item, Page

Purpose = Literal["fine-tune", "batch", "user_data", "assistants", "vision", "evals"]


class UploadFields(BaseModel):
    """The fields that accompany the file in the form."""

    model_config = ConfigDict(extra="ignore")

    purpose: Purpose
    anchor: Literal["created_at"] | None = Field(default=None, alias="expires_after[anchor]")
    seconds: int | None = Field(default=None, alias="expires_after[seconds]", ge=3600, le=2592000)

    @model_validator(mode="after")
    def _both_or_neither(self) -> "UploadFields":
        if (self.anchor is None) != (self.seconds is None):
            raise ValueError("'expires_after' needs both 'anchor' and 'seconds'")
        return self


class File(Item):
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: str
    status_details: str | None

    @classmethod
    def of(cls, row: FileRow) -> "File":
        return cls(
            id=row.id,
            bytes=row.bytes,
            created_at=_seconds(row.created_at),
            expires_at=None if row.expires_at is None else _seconds(row.expires_at),
            filename=row.filename,
            purpose=row.purpose,
            status=row.status,
            status_details=row.status_details,
        )


class LineProblem(BaseModel):
    line: int
    code: str
    message: str
    fix: str


class Lengths(BaseModel):
    """Of the valid lines' texts, in tokens; what a chat template adds to them is not in it.

    Counted by the tokenizer of `model`, or estimated by bytes where the service has none. `estimated` is true also
    where so much of a large file was counted that the rest is reckoned from it.
    """

    method: Literal["tokenizer", "bytes/4"]
    model: str | None
    estimated: bool
    total: int
    mean: float
    max: int
    histogram: list["Bucket"]


class Bucket(BaseModel):
    up_to: int
    examples: int


class Duplicate(BaseModel):
    line: int
    first_line: int


class Duplicates(BaseModel):
    """Valid lines that say exactly what an earlier one says; `lines` has the first hundred."""

    examples: int
    examined: int
    lines: list[Duplicate]


class Shared(BaseModel):
    line: int
    compared_line: int


class Overlap(BaseModel):
    """Valid lines that the other file has too; `lines` has the first hundred."""

    file_id: str
    examples: int
    examined: int
    lines: list[Shared]


class Validation(BaseModel):
    """What was found in a file. `complete` is false where it has so many problems that the rest was not looked at."""

    object: Literal["file.validation"] = "file.validation"
    file_id: str
    purpose: str
    format: str | None
    complete: bool
    lines: int
    valid: int
    problems: list[LineProblem]
    problem_counts: dict[str, int]
    tokens: Lengths
    duplicates: Duplicates
    overlap: Overlap | None

    @classmethod
    def of(cls, row: FileRow, found: Findings, compared: str | None, base: str | None) -> "Validation":
        repeats = [Duplicate(line=pair.line, first_line=pair.same_as) for pair in found.duplicates.lines]
        return cls(
            file_id=row.id,
            purpose=row.purpose,
            format=found.example_format,
            complete=not found.given_up,
            lines=found.lines,
            valid=found.examples,
            problems=[LineProblem.model_validate(described(problem)) for problem in found.problems],
            problem_counts=found.counts,
            tokens=_lengths(found, base),
            duplicates=Duplicates(
                examples=found.duplicates.examples, examined=found.duplicates.examined, lines=repeats
            ),
            overlap=_overlap(found, compared),
        )


def _lengths(found: Findings, base: str | None) -> Lengths:
    lengths = found.lengths
    return Lengths(
        method="tokenizer" if lengths.counted else "bytes/4",
        model=base if lengths.counted else None,
        estimated=lengths.counted < max(found.examples, 1),
        total=lengths.total,
        mean=round(lengths.total / found.examples, 1) if found.examples else 0.0,
        max=lengths.longest,
        histogram=[Bucket(up_to=bound, examples=count) for bound, count in lengths.histogram.items()],
    )


def _overlap(found: Findings, compared: str | None) -> Overlap | None:
    if found.overlap is None or compared is None:
        return None
    shared = [Shared(line=pair.line, compared_line=pair.same_as) for pair in found.overlap.lines]
    return Overlap(file_id=compared, examples=found.overlap.examples, examined=found.overlap.examined, lines=shared)


class FileDeleted(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


FilePage = Page[File]


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())
