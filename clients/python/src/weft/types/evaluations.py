"""Evaluations of adapters' versions, and how answers are graded."""

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from openai import BaseModel
from openai.types.graders import ScoreModelGraderParam, StringCheckGraderParam, TextSimilarityGraderParam


class EvaluationError(BaseModel):
    code: str
    message: str


class Promotion(BaseModel):
    """What the score decides. `promoted` is None until then; `reason` says why the version was not."""

    alias: str
    min_score: float | None = None
    must_beat_current: bool
    promoted: bool | None = None
    reason: str | None = None


class ExampleScore(BaseModel):
    """`line` is that of the file; `problem` is why an answer, or its score, could not be had."""

    line: int
    score: float
    current_score: float | None = None
    problem: str | None = None


class EvaluationResults(BaseModel):
    """Without `lines` the score is the one that the version's job measured over the whole file."""

    examples: int
    problems: int = 0
    lines: list[ExampleScore] = []


class AdapterEvaluation(BaseModel):
    """`score` is the mean over the examples; of `loss`, of which less is better, over their tokens.

    Where a promotion depends on it, `current_version` is the one that the alias stood for when it began.
    """

    id: str
    object: Literal["adapter.evaluation"] = "adapter.evaluation"
    adapter: str
    version: int
    model: str
    file_id: str
    grader: dict[str, Any]
    status: Literal["queued", "running", "succeeded", "failed"] | str
    score: float | None = None
    current_version: int | None = None
    current_score: float | None = None
    promotion: Promotion | None = None
    results: EvaluationResults | None = None
    error: EvaluationError | None = None
    fine_tuning_job_id: str | None = None
    """The job whose success asked for it."""
    created_at: int
    finished_at: int | None = None


class LossParam(TypedDict):
    """The loss on the examples' answers."""

    type: Literal["loss"]


class ExactMatchParam(TypedDict):
    """1 where the answer is the example's own, but for space around it; else 0."""

    type: Literal["exact_match"]


GraderParam = (
    StringCheckGraderParam
    | TextSimilarityGraderParam
    | ScoreModelGraderParam
    | LossParam
    | ExactMatchParam
    | Mapping[str, object]
)
