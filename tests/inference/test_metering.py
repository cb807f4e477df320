"""What is read of bodies: the likely cost, whatever the numbers in them are."""

import json

import msgspec
import pytest

from inference.metering import BYTES_PER_TOKEN, LIKELY_ANSWER, Asked


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
