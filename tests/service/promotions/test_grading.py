"""Graders over one answer, and the examples that a file gives."""

from typing import Any

import pytest
from pydantic import TypeAdapter

from service.contracts.store import ObjectStore
from service.errors import InvalidRequest
from service.jobs.graders import Grader, ScoreModel
from service.promotions.examples import COMPLETION, MOST, example, sample
from service.promotions.grading import Sample, grade, number_in

GRADER: TypeAdapter[Grader] = TypeAdapter(Grader)
SAMPLE, REFERENCE = "{{sample.output_text}}", "{{item.reference}}"
LINE = {"messages": [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4", "weight": 1}], "n": 4}


def check(operation: str, reference: str, given: str = SAMPLE) -> dict[str, Any]:
    return {"type": "string_check", "input": given, "reference": reference, "operation": operation}


@pytest.mark.parametrize(
    ("grader", "answer", "score"),
    [
        ({"type": "exact_match"}, " 4\n", 1.0),
        ({"type": "exact_match"}, "5", 0.0),
        (check("eq", REFERENCE), "4", 1.0),
        (check("eq", REFERENCE), "4.", 0.0),
        (check("ne", REFERENCE), "4.", 1.0),
        (check("like", REFERENCE), "It is 4.", 1.0),
        (check("like", "FOUR"), "four", 0.0),
        (check("ilike", "FOUR"), "It is four.", 1.0),
        (check("eq", "{{ item.messages.0.content }}", "{{sample.output_json.q}}"), '{"q": "2+2"}', 1.0),
        (check("eq", "{{item.n}}", "{{sample.output_json.a.1}}"), '{"a": [3, 4]}', 1.0),
        (check("eq", "4", "{{sample.output_json.q}}"), "no json", 0.0),
        ({**check("eq", "abcd"), "type": "text_similarity", "evaluation_metric": "fuzzy_match"}, "abxx", 0.5),
        ({**check("eq", "a b c d"), "type": "text_similarity", "evaluation_metric": "rouge_2"}, "a b x c d", 4 / 7),
    ],
)
async def test_a_grader_scores_an_answer(grader: dict[str, Any], answer: str, score: float) -> None:
    if grader["type"] == "text_similarity":
        del grader["operation"]
    parsed: Any = GRADER.validate_python(grader)
    assert await grade(parsed, example(1, LINE), Sample(answer)) == score


async def test_a_field_that_the_example_lacks_is_named_with_its_line() -> None:
    grader: Any = GRADER.validate_python(check("eq", "{{item.city}}"))
    with pytest.raises(InvalidRequest, match=r"'item\.city', and the example in line 7"):
        await grade(grader, example(7, LINE), Sample("4"))


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ('{"result": 7}', 7.0),
        ('{"score": -2.5}', 0.0),
        ("I give it 3 of 10: 8.5", 8.5),
        ("99", 10.0),
        ("none", None),
        ("true", None),
        ('{"result": "x"}', None),
        ("NaN", None),
        ("1e999", 10.0),
    ],
)
def test_the_number_of_a_grading_models_answer(answer: str, found: float | None) -> None:
    asks = {"role": "user", "content": "?"}
    grader = ScoreModel.model_validate({"type": "score_model", "model": "m", "input": [asks], "range": [0, 10]})
    assert number_in(answer, grader) == found


def test_an_example_is_asked_without_its_answer() -> None:
    chat = example(1, {**LINE, "tools": [{"type": "function", "function": {"name": "f"}}]})
    assert chat.asked == {"messages": LINE["messages"][:1], "tools": [{"type": "function", "function": {"name": "f"}}]}
    assert chat.answered["messages"][-1] == {"role": "assistant", "content": "4"}
    plain = example(1, {"prompt": "2+2=", "completion": "4"})
    assert (plain.path, plain.asked, plain.answered) == (COMPLETION, {"prompt": "2+2="}, {"prompt": "2+2=4"})
    better, worse = ([{"role": "assistant", "content": text}] for text in "45")
    chosen = example(
        1, {"input": {"messages": LINE["messages"][:1]}, "preferred_output": better, "non_preferred_output": worse}
    )
    assert (chosen.reference, chosen.asked) == ("4", {"messages": LINE["messages"][:1]})
    call = {"type": "function", "function": {"name": "f", "arguments": '{"b":1, "a":2}'}}
    called = example(1, {"messages": [*LINE["messages"][:1], {"role": "assistant", "tool_calls": [call]}]})
    assert called.reference == '[{"arguments":{"a":2,"b":1},"name":"f"}]'


async def test_of_a_long_file_the_same_examples_are_asked_each_time(object_store: ObjectStore) -> None:
    object_store.ensure_bucket()
    lines = [b'{"prompt":"%d","completion":"x"}\n%s' % (n, b"\n" * (n % 3)) for n in range(MOST + 30)]
    object_store.put("promotions/sample", b"".join(lines))
    drawn = [[each async for each in sample(object_store, "promotions/sample", len(lines), "seed")] for _ in range(2)]
    assert drawn[0] == drawn[1]
    asked = [int(each.asked["prompt"]) for each in drawn[0]]
    assert len(asked) == MOST
    assert asked == sorted(set(asked))
    few = [each.line async for each in sample(object_store, "promotions/sample", 3, "seed")]
    assert few == [1, 2, 4]
