"""What a training file may hold: each way of being wrong has its code and its line, and none of them is quoted."""

import json
import random
import tracemalloc
from typing import Any

import pytest

from service.files.datasets import MAX_PROBLEMS, DatasetCheck, refusal
from trainer.data.examples import parse_line

LIMIT = 1 << 20
USER: dict[str, Any] = {"role": "user", "content": "Hi"}
ANSWER: dict[str, Any] = {"role": "assistant", "content": "Hello"}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
GOOD = json.dumps({"messages": [USER, ANSWER]}).encode()


def chat(*messages: dict[str, Any], **fields: Any) -> bytes:
    return json.dumps({"messages": messages, **fields}).encode()


def checked(content: bytes, piece: int = 1 << 18, limit: int = LIMIT) -> DatasetCheck:
    check = DatasetCheck(limit)
    for start in range(0, len(content), piece):
        check.feed(content[start : start + piece])
    check.finish()
    return check


def preference(messages: Any = (USER,), preferred: Any = (ANSWER,), other: Any = (ANSWER,), **fields: Any) -> bytes:
    sides = {"preferred_output": preferred, "non_preferred_output": other}
    return json.dumps({"input": {"messages": messages, **fields}, **sides}).encode()


ACCEPTED = [
    GOOD,
    b"  " + GOOD + b" \r",
    chat(USER, {**ANSWER, "weight": 0}, USER, {**ANSWER, "weight": 1}),
    chat({"role": "developer", "content": "Be kind"}, USER, ANSWER),
    chat({"role": "system", "content": "Be kind"}, USER, ANSWER, {"role": "user", "content": "Bye"}),
    chat(USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": "1"}, ANSWER),
    chat(USER, {"role": "assistant", "tool_calls": [CALL]}, tools=[{"type": "function", "function": {"name": "f"}}]),
    chat(USER, {"role": "assistant", "function_call": {"name": "f", "arguments": ""}}, functions=[{"name": "f"}]),
    chat({"role": "user", "content": [{"type": "text", "text": "Hi"}]}, ANSWER, parallel_tool_calls=False),
    chat(USER, ANSWER, more={"of": ["the", "sender's"]}),
    chat({"role": "user", "content": "literal \\u0000 is only text"}, ANSWER),
    preference(),
    preference(tools=[{"type": "function", "function": {"name": "f"}}], parallel_tool_calls=True),
    preference([USER, ANSWER, USER], [{"role": "assistant", "content": None, "tool_calls": [CALL]}]),
    preference().replace(b"_output", b"_completion"),
    preference(preferred=[{**ANSWER, "content": [{"type": "text", "text": "Hi"}]}]),
    b'{"prompt":"Hi","completion":" there"}',
    b'{"prompt":"","completion":" there"}',
    b'{"prompt":"\\ud83d\\ude00","completion":"\xf0\x9f\x98\x80"}',
]

REFUSED = [
    ("invalid_json", b"{"),
    ("invalid_json", b"hello"),
    ("invalid_json", b"{'messages': []}"),
    ("invalid_json", GOOD + GOOD),
    ("invalid_json", b"[" * 200_000),
    ("invalid_json", b'{"a":' * 2000 + b"1" + b"}" * 2000),
    ("invalid_json", b'{"prompt":"a","completion":"b","n":' + b"9" * 100_000 + b"}"),
    ("invalid_json", b'{"prompt":"a","completion":"b","n":NaN}'),
    ("invalid_json", b'{"prompt":"\\ud800","completion":"b"}'),
    ("invalid_json", b'{"prompt":"tab\tin text","completion":"b"}'),
    ("invalid_utf8", b'{"prompt":"\xc3","completion":"b"}'),
    ("invalid_utf8", GOOD.decode().encode("utf-16-le").replace(b"\0", b"\xff")),
    ("nul_character", GOOD.decode().encode("utf-16-le")),
    ("nul_character", b'{"prompt":"\0","completion":"b"}'),
    ("nul_character", b'{"prompt":"\\u0000","completion":"b"}'),
    ("nul_character", chat(USER, ANSWER, deep=[{"in": ["\0"]}])),
    ("nul_character", chat(USER, ANSWER, **{"\0": 1})),
    ("byte_order_mark", b"\xef\xbb\xbf" + GOOD),
    ("line_too_long", chat(USER, {"role": "assistant", "content": "x" * LIMIT})),
    ("line_too_long", b"x" * (5 << 20)),
    ("not_an_object", b"[1]"),
    ("not_an_object", b'"text"'),
    ("not_an_object", b"null"),
    ("missing_messages", b"{}"),
    ("missing_messages", b'{"question":"a","answer":"b"}'),
    ("empty_messages", chat()),
    ("invalid_messages", b'{"messages":5}'),
    ("invalid_messages", b'{"messages":[5]}'),
    ("invalid_messages", chat(*[USER, ANSWER] * 513)),
    ("unknown_role", chat({"role": "bot", "content": "x"})),
    ("unknown_role", chat({"content": "x"})),
    ("invalid_content", chat({"role": "user", "content": 5}, ANSWER)),
    ("invalid_content", chat({"role": "user", "content": {"text": "x"}}, ANSWER)),
    ("invalid_content", chat({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, ANSWER)),
    ("empty_assistant", chat(USER, {"role": "assistant"})),
    ("empty_assistant", chat(USER, {"role": "assistant", "content": ""})),
    ("empty_assistant", chat(USER, ANSWER, {"role": "assistant", "content": [], "tool_calls": []})),
    ("no_assistant_message", chat(USER)),
    ("no_trained_message", chat(USER, {**ANSWER, "weight": 0})),
    ("invalid_weight", chat(USER, {**ANSWER, "weight": 2})),
    ("invalid_weight", chat(USER, {**ANSWER, "weight": 0.5})),
    ("invalid_weight", chat(USER, {**ANSWER, "weight": "1"})),
    ("invalid_weight", chat(USER, {**ANSWER, "weight": True})),
    ("invalid_tool_calls", chat(USER, {**ANSWER, "tool_calls": {}})),
    ("invalid_tool_calls", chat(USER, {**ANSWER, "tool_calls": [{"function": {"arguments": "{}"}}]})),
    ("invalid_tool_calls", chat(USER, {**ANSWER, "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]})),
    ("invalid_tool_calls", chat(USER, {**ANSWER, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]})),
    ("invalid_tool_calls", chat(USER, {**ANSWER, "function_call": {"name": 5}})),
    ("invalid_tools", chat(USER, ANSWER, tools=[{"type": "function"}])),
    ("invalid_tools", chat(USER, ANSWER, tools=[{"type": "magic", "function": {"name": "f"}}])),
    ("invalid_tools", chat(USER, ANSWER, tools="f")),
    ("invalid_prompt", b'{"completion":"b"}'),
    ("invalid_prompt", b'{"prompt":["a"],"completion":"b"}'),
    ("invalid_completion", b'{"prompt":"a"}'),
    ("invalid_completion", b'{"prompt":"a","completion":""}'),
    ("invalid_completion", b'{"prompt":"a","completion":5}'),
]

REFUSED_PREFERENCES = [
    ("invalid_input", json.dumps({"preferred_output": [ANSWER], "non_preferred_output": [ANSWER]}).encode()),
    ("invalid_input", b'{"input":"Hi"}'),
    ("invalid_messages", b'{"input":{}}'),
    ("empty_messages", preference([])),
    ("unknown_role", preference([{"role": "bot", "content": "x"}])),
    ("invalid_content", preference([{"role": "user", "content": 5}])),
    ("invalid_tools", preference(tools="f")),
    ("empty_assistant", preference([USER, {"role": "assistant"}])),
    ("invalid_preferred_output", json.dumps({"input": {"messages": [USER]}, "non_preferred_output": []}).encode()),
    ("invalid_preferred_output", preference(preferred=[])),
    ("invalid_preferred_output", preference(preferred=[ANSWER, ANSWER])),
    ("invalid_preferred_output", preference(preferred="Hello")),
    ("invalid_preferred_completion", preference(preferred=[]).replace(b"_output", b"_completion")),
    ("invalid_non_preferred_output", preference(other=[ANSWER, ANSWER])),
    ("unknown_role", preference(other=[{"role": "bot", "content": "x"}])),
    ("invalid_content", preference(other=[{**ANSWER, "content": 5}])),
    ("not_an_assistant", preference(preferred=[USER])),
    ("not_an_assistant", preference(other=[USER])),
    ("empty_assistant", preference(preferred=[{"role": "assistant", "content": ""}])),
    ("nul_character", preference(other=[{**ANSWER, "content": "\0"}])),
]


@pytest.mark.parametrize("line", ACCEPTED)
def test_a_good_line_is_accepted_here_and_by_the_trainer(line: bytes) -> None:
    check = checked(line)
    assert (check.problems, check.examples) == ([], 1)
    parse_line(line, "dpo" if check.example_format == "preference" else "supervised")


@pytest.mark.parametrize(("code", "line"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_a_bad_line_is_named_by_code_and_number(code: str, line: bytes) -> None:
    first = checked(line + b"\n")
    assert [(problem.line, problem.code) for problem in first.problems] == [(1, code)]
    if code != "byte_order_mark":
        form = b'{"prompt":"a","completion":"b"}' if code in {"invalid_prompt", "invalid_completion"} else GOOD
        third = checked(form + b"\n" + form + b"\n" + line + b"\n" + form)
        assert [(problem.line, problem.code) for problem in third.problems] == [(3, code)]
        assert third.examples == 3


@pytest.mark.parametrize(
    ("code", "line"), REFUSED_PREFERENCES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_bad_preference_is_named_by_code_and_number(code: str, line: bytes) -> None:
    check = checked(preference() + b"\n" + line + b"\n" + preference())
    assert [(problem.line, problem.code) for problem in check.problems] == [(2, code)]
    assert check.examples == 2


def test_a_place_in_a_preference_is_named_from_its_beginning() -> None:
    (problem,) = checked(preference([USER, {"role": "user", "content": [{"type": "text"}]}])).problems
    assert problem.message == "input.messages.1.content.0.text: Field required"


def test_the_last_line_needs_no_newline_and_blank_lines_may_end_a_file() -> None:
    for content in (GOOD, GOOD + b"\n", GOOD + b"\r\n", GOOD + b"\n\n  \n\n"):
        check = checked(content)
        assert (check.problems, check.examples) == ([], 1)


def test_a_blank_line_in_the_middle_is_named() -> None:
    check = checked(GOOD + b"\n\n\n" + GOOD + b"\n")
    assert [(problem.line, problem.code) for problem in check.problems] == [(2, "blank_line")]


@pytest.mark.parametrize("content", [b"\n", b" \n \n", b"\r\n"])
def test_a_file_of_blank_lines_is_empty(content: bytes) -> None:
    assert [problem.code for problem in checked(content).problems] == ["empty_file"]


FORMATS = {"chat": GOOD, "completion": b'{"prompt":"a","completion":"b"}', "preference": preference()}


@pytest.mark.parametrize("first", FORMATS)
@pytest.mark.parametrize("other", FORMATS)
def test_a_file_holds_examples_of_one_format(first: str, other: str) -> None:
    check = checked(b"\n".join([FORMATS[first], FORMATS[first], FORMATS[other], FORMATS[other]]))
    assert check.example_format == first
    mixed = [(3, "mixed_formats"), (4, "mixed_formats")] if first != other else []
    assert [(problem.line, problem.code) for problem in check.problems] == mixed
    if mixed:
        assert f"line 3: is a {other} example, the lines before are {first} examples" in refusal(check).message


def test_the_cut_into_pieces_does_not_matter() -> None:
    seeded = random.Random(7)
    lines = [seeded.choice([GOOD, b"{", b"", chat(USER), b"x" * 3000]) for _ in range(20)]
    content = b"\n".join(lines) + b"\n"
    whole = checked(content, limit=2000)
    for piece in (1, 7, 1999, 2000, 2001):
        again = checked(content, piece, limit=2000)
        assert (again.problems, again.examples) == (whole.problems, whole.examples)


def test_the_limit_of_a_line_is_exact() -> None:
    padding = b" " * (2000 - len(GOOD))
    assert checked(GOOD[:-1] + padding + b"}\n", limit=2000).problems == []
    assert checked(GOOD[:-1] + padding + b"}", limit=2000).problems == []
    assert [problem.code for problem in checked(GOOD[:-1] + padding + b" }\n", limit=2000).problems] == [
        "line_too_long"
    ]


def test_memory_stays_bounded_whatever_is_fed() -> None:
    check = DatasetCheck(LIMIT)
    piece = b"x" * (1 << 18)
    tracemalloc.start()
    try:
        for _ in range(256):
            check.feed(piece)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    check.finish()
    assert [problem.code for problem in check.problems] == ["line_too_long"]
    assert peak < 8 * LIMIT


def test_problems_are_counted_up_to_a_limit_and_the_first_are_named() -> None:
    check = checked(b"{\n" * 100)
    assert check.given_up
    assert len(check.problems) == MAX_PROBLEMS
    error = refusal(check)
    assert (error.status, error.code, error.param) == (400, "invalid_training_file", "file")
    assert "line 1: is not valid JSON" in error.message
    assert "line 3:" in error.message
    assert "line 4:" not in error.message
    assert "17 or more further problems" in error.message
    assert error.body()["error"]["problems"][4] == {
        "line": 5,
        "code": "invalid_json",
        "message": "is not valid JSON (column 2)",
        "fix": "Write one complete JSON object on the line, with double quotes, and nothing after it.",
    }


CANARY = "KANARIENVOGEL"


@pytest.mark.parametrize(
    "line",
    [
        chat({"role": CANARY, "content": CANARY}),
        chat({"role": "user", "content": {CANARY: CANARY}}, ANSWER),
        chat(USER, {**ANSWER, "weight": CANARY}),
        chat(USER, {**ANSWER, "tool_calls": [{"type": CANARY, CANARY: 1}]}),
        chat(USER, {**ANSWER, "tool_calls": [{"function": {"name": "f", "arguments": CANARY}}]}),
        chat(USER, ANSWER, tools=[{CANARY: CANARY}]),
        json.dumps({CANARY: CANARY}).encode(),
        preference([{"role": CANARY, "content": CANARY}]),
        preference(preferred=[{"role": "assistant", "content": CANARY}] * 2),
        preference(other=[{"role": "user", "content": CANARY}]),
        json.dumps({"prompt": [CANARY], "completion": CANARY}).encode(),
        b'{"' + CANARY.encode(),
        CANARY.encode(),
        b"\xff" + CANARY.encode(),
    ],
)
def test_nothing_of_the_file_is_quoted(line: bytes) -> None:
    check = checked(line)
    assert check.problems
    assert CANARY not in json.dumps(refusal(check).body())
