"""How answers are graded, in OpenAI's shapes, and what a job's success may lead to. What a grader does with an answer
is the business of `service.promotions`.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

METRICS = ("fuzzy_match", "bleu", "gleu", "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l")
UNMEASURED = {
    "cosine": "needs embeddings, which the models of this service do not give",
    "meteor": "needs a dictionary of synonyms, which this service does not have",
}
"""OpenAI's other metrics, and why they are not measured here."""
PLACEHOLDER = re.compile(r"{{([^{}]*)}}")
"""In a template; what stands inside is a path such as `item.answer` or `sample.output_json.city`."""
SAMPLE = ("output_text", "output_json")
MOST_TEXT = 64_000


class Shape(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _check_template(text: str) -> str:
    for path in (place.strip() for place in PLACEHOLDER.findall(text)):
        root, _, rest = path.partition(".")
        known = (root == "item" and rest) or (root == "sample" and rest.partition(".")[0] in SAMPLE)
        if not known or rest.startswith("output_text."):
            raise ValueError(
                f"'{{{{{path[:64]}}}}}' names nothing; use {{{{item.<field>}}}} for a field of the example, "
                "{{item.reference}} for its answer, {{sample.output_text}} or {{sample.output_json.<field>}}"
            )
    return text


def _check_metric(metric: str) -> str:
    if metric not in METRICS:
        why = f"'{metric}' {UNMEASURED[metric]}; " if metric in UNMEASURED else ""
        raise ValueError(f"{why}this service measures {', '.join(repr(known) for known in METRICS)}")
    return metric


Template = Annotated[str, Field(max_length=MOST_TEXT), AfterValidator(_check_template)]
GraderName = Annotated[str, Field(max_length=128)]
Bound = Annotated[float, Field(allow_inf_nan=False)]


class StringCheck(Shape):
    """1 where `input` and `reference` are equal (`eq`), are not (`ne`), or the one holds the other (`like`, and
    `ilike` whatever the case); else 0.
    """

    type: Literal["string_check"]
    name: GraderName | None = None
    input: Template
    reference: Template
    operation: Literal["eq", "ne", "like", "ilike"]


class TextSimilarity(Shape):
    """How much of the two texts is alike, from 0 to 1: by characters in order (`fuzzy_match`), by n-grams of words
    (`bleu`, `gleu`, and `rouge_1` to `rouge_5` as F1), or by words in order (`rouge_l` as F1).
    """

    type: Literal["text_similarity"]
    name: GraderName | None = None
    input: Template
    reference: Template
    evaluation_metric: Annotated[str, AfterValidator(_check_metric), Field(json_schema_extra={"enum": list(METRICS)})]


class GraderMessage(Shape):
    role: Literal["system", "developer", "user", "assistant"]
    content: Template


class SamplingParams(Shape):
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: int | None = None
    max_completions_tokens: Annotated[int, Field(ge=1, le=4096)] | None = None


class ScoreModel(Shape):
    """What number a model of the project answers: `{"result": 0.7}`, or the last number that it says."""

    type: Literal["score_model"]
    name: GraderName | None = None
    model: Annotated[str, Field(min_length=1, max_length=256)]
    input: Annotated[list[GraderMessage], Field(min_length=1, max_length=64)]
    range: Annotated[list[Bound], Field(min_length=2, max_length=2)] = [0.0, 1.0]
    sampling_params: SamplingParams = SamplingParams()

    @model_validator(mode="after")
    def _range_goes_up(self) -> "ScoreModel":
        if self.range[0] >= self.range[1]:
            raise ValueError("'range' must go from a smaller number to a larger one")
        return self


class ExactMatch(Shape):
    """1 where the answer is the example's own, but for space around it; else 0."""

    type: Literal["exact_match"]


class Loss(Shape):
    """The loss on the examples' answers, of which less is better."""

    type: Literal["loss"]


Grader = Annotated[StringCheck | TextSimilarity | ScoreModel | ExactMatch | Loss, Field(discriminator="type")]


class HeldOut(Shape):
    """Without `file_id`, the examples are those of the job's validation file."""

    file_id: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    grader: Grader = Loss(type="loss")


class OnSuccess(Shape):
    """The job's new version takes an alias over where its score is at least `min_score` and, with `must_beat_current`,
    better than that of the version which the alias stands for then. `adapter` may be given as the job's own.
    """

    adapter: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    alias: Annotated[str, Field(min_length=1, max_length=32)]
    evaluation: HeldOut = HeldOut()
    min_score: Annotated[float, Field(allow_inf_nan=False)] | None = None
    must_beat_current: bool = True


def dumped(shape: Shape) -> dict[str, Any]:
    """As it is stored and shown."""
    return shape.model_dump(mode="json", exclude_none=True)
