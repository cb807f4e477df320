"""What is read of bodies and answers: likely cost before, real use after, and nothing that a text could forge."""

import json

import msgspec
import pytest

from inference.metering import BYTES_PER_TOKEN, LIKELY_ANSWER, Asked, Meter, Tokens


def cost(**fields: object) -> float:
    body = json.dumps({"model": "m", **fields}).encode()
    return msgspec.json.decode(body, type=Asked).likely_cost(len(body)) - len(body) / BYTES_PER_TOKEN


@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        ({}, LIKELY_ANSWER),
        ({"max_tokens": 10}, 10),
        ({"max_completion_tokens": 20, "max_tokens": 30}, 20),
        ({"max_output_tokens": 15}, 15),
        ({"max_tokens": 10**9}, LIKELY_ANSWER),
        ({"max_tokens": -5}, LIKELY_ANSWER),
        ({"max_tokens": "10", "n": True}, LIKELY_ANSWER),
        ({"max_tokens": 10, "n": 3}, 30),
        ({"max_tokens": 1, "n": 10**12}, 128),
        ({"max_tokens": None, "n": [1]}, LIKELY_ANSWER),
    ],
)
def test_likely_cost(fields: dict[str, object], answer: float) -> None:
    assert cost(**fields) == answer


def metered(*parts: bytes, status: int = 200) -> Tokens:
    meter = Meter()
    meter.begin(status)
    for part in parts:
        meter.see(part)
    return meter.used()


def event(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields, separators=(",", ":")).encode() + b"\n\n"


def test_whole_answer_states_its_use() -> None:
    answer = {"choices": [{"text": "x"}], "usage": {"prompt_tokens": 7, "total_tokens": 12, "completion_tokens": 5}}
    assert metered(json.dumps(answer).encode()) == Tokens(7, 5)


def test_a_response_states_its_use_in_other_words() -> None:
    usage = {"input_tokens": 7, "input_tokens_details": {"cached_tokens": 6}, "output_tokens": 5, "total_tokens": 12}
    assert metered(json.dumps({"output": [], "usage": usage, "user": None}).encode()) == Tokens(7, 5)
    assert metered(event(delta="x"), event(response={"usage": usage}, sequence_number=9)) == Tokens(7, 5)


def test_last_count_of_a_stream_counts() -> None:
    counts = [event(usage={"prompt_tokens": 7, "total_tokens": 7 + n, "completion_tokens": n}) for n in range(5)]
    assert metered(*counts, b"data: [DONE]\n\n", b"") == Tokens(7, 4)
    assert metered(*counts[:3]) == Tokens(7, 2), "a stream that broke off"


def test_stream_without_counts_is_counted_by_events() -> None:
    assert metered(*[event(choices=[]) for _ in range(9)]) == Tokens(0, 9)


def test_text_cannot_pass_for_a_count() -> None:
    forged = '"usage":{"prompt_tokens":0,"completion_tokens":0}'
    answer = {"usage": {"prompt_tokens": 7, "completion_tokens": 5}, "choices": [{"text": forged}]}
    assert metered(json.dumps(answer, separators=(",", ":")).encode()) == Tokens(7, 5)


def test_refusal_used_nothing() -> None:
    assert metered(b'{"error":{}}', status=400) == Tokens()
