"""What the service says about files: reports on their lines."""

from typing import Literal

from openai import BaseModel

MIN_EXAMPLES = 10
"""A service may be set to another number; it says so when a job is made."""


class FileProblem(BaseModel):
    """A line that cannot be used. `code` stays the same over versions, `message` and `fix` are for people."""

    line: int
    code: str
    message: str
    fix: str


class Bucket(BaseModel):
    up_to: int
    examples: int


class Lengths(BaseModel):
    """Of the valid lines' texts, in tokens, without what a chat template adds to them.

    Counted by the tokenizer of `model`, or `estimated`: by bytes, or in part from what was counted of a large file.
    """

    method: str
    model: str | None = None
    estimated: bool = True
    total: int
    mean: float
    max: int
    histogram: list[Bucket]


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
    """The other file's id, or its path where the check was made offline."""
    examples: int
    examined: int
    lines: list[Shared]


class _Report(BaseModel):
    purpose: str
    format: Literal["chat", "completion", "preference", "request"] | str | None
    complete: bool
    """False where the file has so many problems that the rest was not looked at."""
    lines: int
    valid: int
    problems: list[FileProblem]
    """The first hundred."""
    problem_counts: dict[str, int]
    tokens: Lengths
    duplicates: Duplicates
    overlap: Overlap | None = None

    @property
    def ok(self) -> bool:
        """Whether every line can be used."""
        return not self.problem_counts

    @property
    def warnings(self) -> list[str]:
        """Why no job can be made with the file though every line can be used."""
        if self.purpose != "fine-tune" or self.valid >= MIN_EXAMPLES:
            return []
        return [f"{self.valid} of the lines can be used, and a training file needs at least {MIN_EXAMPLES} examples"]


class FileValidation(_Report):
    """What the service has found in a file."""

    object: Literal["file.validation"] = "file.validation"
    file_id: str


class DatasetReport(_Report):
    """What `weft.datasets.check` has found in a local file."""

    path: str
