"""What is read of bodies: the likely cost, whatever the numbers in them are. What is remembered of the real one."""

import json

import msgspec
import pytest

from inference.metering import BYTES_PER_TOKEN, LIKELY_ANSWER, Asked, Recent, Tokens


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


def test_costs_of_the_last_requests_are_remembered() -> None:
    recent = Recent(most=2)
    for name, tokens in (("a", Tokens(1, 1)), ("b", Tokens(2, 0)), ("", Tokens(3, 3)), ("none", Tokens())):
        recent.note(name, tokens)
    assert recent.of(["b", "a", "none", "", "unknown"]) == {"a": Tokens(1, 1), "b": Tokens(2, 0)}
    recent.note("c", Tokens(0, 1))
    assert recent.of("abc") == {"b": Tokens(2, 0), "c": Tokens(0, 1)}
