"""What a request is likely to cost, in tokens, read from its body, and what requests did cost."""

from collections import OrderedDict
from collections.abc import Iterable
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


class Recent:
    """What requests that are over have cost, by the gateway's ids: it asks for those whose clients left early."""

    def __init__(self, most: int = 16_384) -> None:
        self._tokens: OrderedDict[str, Tokens] = OrderedDict()
        self._most = most

    def note(self, request_id: str, tokens: Tokens) -> None:
        """Nothing is noted for nothing."""
        if not request_id or not tokens.total:
            return
        self._tokens[request_id] = tokens
        self._tokens.move_to_end(request_id)
        if len(self._tokens) > self._most:
            self._tokens.popitem(last=False)

    def of(self, request_ids: Iterable[str]) -> dict[str, Tokens]:
        """Of those that are known."""
        return {name: self._tokens[name] for name in request_ids if name in self._tokens}


def _positive(number: Any) -> bool:
    return type(number) is int and number > 0
