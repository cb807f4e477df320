"""The event stream of `/v1/responses` on its way to the client: whole events, the public model name, the final count.

vLLM counts in the last event only. A stream that breaks off before it is booked by what the client had: one token for
each delta, which is how vLLM sends them, and the prompt by OpenAI's rule of four characters a token.
"""

import re
from typing import Any

import orjson

from service.errors import ApiError
from service.gateway.events import END, EVENT_LIMIT, StreamBroken, Usage, model_member, usage_of_answer
from service.gateway.request import CompletionRequest
from service.gateway.resolve import Target
from service.limits.limiter import BYTES_PER_TOKEN

DELTA = re.compile(rb"^event: response\.[a-z_.]+\.delta\n", re.MULTILINE)
LAST = re.compile(rb"^event: response\.(?:completed|incomplete|failed)\n")
DATA = b"\ndata: "


class ResponseEvents:
    """One stream, with the members of `EventFilter`."""

    def __init__(self, request: CompletionRequest, target: Target) -> None:
        self.done = False
        self.failure: bytes | None = None
        self._rename = (model_member(target.model), model_member(target.name)) if target.is_adapter else None
        self._prompt = request.size // BYTES_PER_TOKEN
        self._events = 0
        self._deltas = 0
        self._final: Usage | None = None
        self._tail = b""

    @property
    def complete(self) -> bool:
        return self._final is not None

    @property
    def usage(self) -> Usage:
        if self._final is not None:
            return self._final
        return Usage(self._prompt, self._deltas) if self._deltas else Usage(0, 0)

    def feed(self, chunk: bytes) -> bytes:
        """The client's bytes for the whole events received so far. Raises StreamBroken on an endless event."""
        data = self._tail + chunk if self._tail else chunk
        cut = data.rfind(END) + len(END)
        if cut < len(END):
            if len(data) > EVENT_LIMIT:
                raise StreamBroken("an event has no end")
            self._tail = data
            return b""
        self._tail, data = data[cut:], data[:cut]
        if self._rename is not None:
            data = data.replace(*self._rename)
        self._deltas += len(DELTA.findall(data))
        self._events += data.count(END)
        last = data[data.rfind(END, 0, -len(END)) + len(END) :] if data.count(END) > 1 else data
        if LAST.match(last):
            self._final = usage_of_answer(_response_of(last))
            self.done = True
        return data

    def failure_event(self, problem: ApiError) -> bytes:
        """OpenAI's own event for this, with the envelope beside it, which makes its clients raise."""
        error = problem.body()
        told = {name: error["error"][name] for name in ("code", "message", "param")}
        body = {"type": "error", "sequence_number": self._events, **told, **error}
        return b"event: error" + DATA + orjson.dumps(body) + END


def _response_of(event: bytes) -> bytes:
    try:
        parsed: Any = orjson.loads(event.partition(DATA)[2])
        return orjson.dumps(parsed["response"])
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise StreamBroken("the replica sent what is no response") from error
