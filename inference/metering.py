"""What a request is likely to cost, in tokens, read from its body, and the count of what it did cost."""

from dataclasses import dataclass
from typing import Any

import msgspec

LIKELY_ANSWER = 256
"""Tokens of an answer, unless the request bounds it lower; the difference is settled when the answer ends."""
BYTES_PER_TOKEN = 4


class Asked(msgspec.Struct):
    """All that is read of a body. vLLM judges the numbers; here they are only weighed."""

    model: str
    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
    n: Any = None

    def likely_cost(self, body_bytes: int) -> float:
        given = (self.max_tokens, self.max_completion_tokens, self.max_output_tokens)
        bounds = [number for number in given if _positive(number)]
        choices = self.n if _positive(self.n) else 1
        return body_bytes / BYTES_PER_TOKEN + min(choices, 128) * min([LIKELY_ANSWER, *bounds])


@dataclass(frozen=True)
class Tokens:
    prompt: int = 0
    completion: int = 0

    @property
    def total(self) -> int:
        return self.prompt + self.completion


def _positive(number: Any) -> bool:
    return type(number) is int and number > 0
