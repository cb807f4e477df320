"""What the public API takes and shows of evaluations."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt

from service.adapters.aliases import version_name
from service.jobs.graders import Grader
from service.listing import Item
from service.registry.models import EvaluationRow


class CreateEvaluation(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Annotated[StrictInt, Field(ge=1, le=999_999_999)]
    file_id: Annotated[str, Field(min_length=1, max_length=128)]
    grader: Grader


class Problem(BaseModel):
    code: str
    message: str


class Promotion(BaseModel):
    """`promoted` is null until it is decided; `reason` says why it was not."""

    alias: str
    min_score: float | None
    must_beat_current: bool
    promoted: bool | None
    reason: str | None


class Score(BaseModel):
    """`line` is that of the file; `problem` is why an answer, or its score, could not be had."""

    line: int
    score: float
    current_score: float | None
    problem: str | None


class Results(BaseModel):
    """Without `lines` the score is the one that the version's job measured over the whole file."""

    examples: int
    problems: int = 0
    lines: list[Score] = []


class Evaluation(Item):
    """`score` is the mean over the examples, of `loss` over their tokens. Where a promotion depends on it,
    `current_version` is the one that the alias stood for when the evaluation began, and `current_score` its score.
    """

    object: Literal["adapter.evaluation"] = "adapter.evaluation"
    adapter: str
    version: int
    model: str
    file_id: str
    grader: dict[str, Any]
    status: Literal["queued", "running", "succeeded", "failed"]
    score: float | None
    current_version: int | None
    current_score: float | None
    promotion: Promotion | None
    results: Results | None
    error: Problem | None
    fine_tuning_job_id: str | None
    created_at: int
    finished_at: int | None

    @classmethod
    def of(cls, name: str, row: EvaluationRow) -> "Evaluation":
        same = ("id", "version", "file_id", "grader", "status", "score", "current_version", "current_score")
        return cls.model_validate(
            {
                **{field: getattr(row, field) for field in (*same, "results", "error")},
                "adapter": name,
                "model": version_name(name, row.version),
                "promotion": _promotion(row),
                "fine_tuning_job_id": row.job_id,
                "created_at": int(row.created_at.timestamp()),
                "finished_at": int(row.finished_at.timestamp()) if row.finished_at else None,
            }
        )


def _promotion(row: EvaluationRow) -> Promotion | None:
    if row.alias is None:
        return None
    return Promotion(
        alias=row.alias,
        min_score=row.min_score,
        must_beat_current=row.must_beat_current,
        promoted=row.promoted,
        reason=row.reason,
    )
