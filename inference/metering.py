"""What a request is likely to cost and what it really used, in tokens, read from bytes that pass by unchanged."""

import re
from collections import deque
from dataclasses import dataclass
from typing import Any

import msgspec

LIKELY_ANSWER = 256
"""Tokens of an answer, unless the request bounds it lower; the difference is settled when the answer ends."""
BYTES_PER_TOKEN = 4

_USAGE = b'"usage":'
_COUNT = re.compile(rb'"(prompt|completion|input|output)_tokens":\s?(\d{1,12})')


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


class Meter:
    """Sees an answer go by and remembers its end, where vLLM says what it used."""

    def __init__(self) -> None:
        self._ok = False
        self._events = 0
        self._last: deque[bytes] = deque(maxlen=3)

    def begin(self, status: int) -> None:
        self._ok = status < 400

    def see(self, part: bytes) -> None:
        if part:
            self._events += 1
            self._last.append(part)

    def used(self) -> Tokens:
        """vLLM's last count; without one (a stream that was not asked to count, and broke off) one for each event."""
        if not self._ok:
            return Tokens()
        for part in reversed(self._last):
            # Inside a JSON string the quotes would be escaped: no answer's text can pass for a count.
            at = part.rfind(_USAGE)
            counts = {name: int(number) for name, number in _COUNT.findall(part, at)} if at >= 0 else {}
            if counts:
                prompt = counts.get(b"prompt", counts.get(b"input", 0))
                return Tokens(prompt, counts.get(b"completion", counts.get(b"output", 0)))
        return Tokens(0, self._events)


def _positive(number: Any) -> bool:
    return type(number) is int and number > 0
