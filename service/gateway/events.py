"""vLLM's event stream on its way to the client: whole events, the public model name, usage shown only where asked for.

vLLM is asked to count in every event (some 80 bytes), so that an answer that breaks off can be metered exactly; this
takes the counts out again. Everything works on bytes: inside a JSON string a quote is always escaped, so the patterns
below, which hold bare quotes around a member's name, cannot match anything that a model or a tenant wrote.
"""

import re
from dataclasses import dataclass
from typing import Any

import orjson

from service.errors import ApiError
from service.gateway.request import CompletionRequest
from service.gateway.resolve import Target

END = b"\n\n"
DONE = b"data: [DONE]"
DATA = b"data: "
FAILURE = b'data: {"error"'
NO_CHOICES = b'"choices":[]'
USAGE = re.compile(rb',"usage":\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}')
EVENT_LIMIT = 16 << 20


class StreamBroken(Exception):
    """What came from the replica is no event stream, or ended before it was complete."""


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int


NOTHING = Usage(0, 0)


class EventFilter:
    """One stream. `done` and `failure` say how it ended; `usage` is what it has cost so far."""

    def __init__(self, request: CompletionRequest, target: Target) -> None:
        self.done = False
        self.failure: bytes | None = None
        self._final: Usage | None = None
        self._rename = (model_member(target.model), model_member(target.name)) if target.is_adapter else None
        self._show_final = request.include_usage
        self._show_counts = request.continuous_usage
        # OpenAI's shape: where usage is asked for, every event but the last has it as null; else none has it.
        self._instead = b',"usage":null' if request.include_usage else b""
        self._counts = _Counts(request.choices, single=request.choices * request.prompts == 1)
        self._tail = b""

    @property
    def complete(self) -> bool:
        """Whether the final count has come."""
        return self._final is not None

    @property
    def usage(self) -> Usage:
        return self._final if self._final is not None else self._counts.sum()

    def feed(self, chunk: bytes) -> bytes:
        """The client's bytes for the whole events received so far. Raises StreamBroken on an endless event."""
        data = self._tail + chunk if self._tail else chunk
        cut = data.rfind(END) + len(END)
        if cut < len(END):
            if len(data) > EVENT_LIMIT:
                raise StreamBroken("an event has no end")
            self._tail = data
            return b""
        self._tail = data[cut:]
        data = data[:cut]
        if self._rename is not None:
            data = data.replace(*self._rename)
        if NO_CHOICES in data or FAILURE in data:
            return b"".join(self._singly(event) for event in data.split(END)[:-1])
        self.done = data.endswith(DONE + END)
        return self._counted(data)

    def failure_event(self, problem: ApiError) -> bytes:
        return DATA + orjson.dumps(problem.body()) + END

    def _counted(self, data: bytes) -> bytes:
        shown, found = USAGE.subn(self._instead, data)
        if found:
            self._counts.add(data)
        return data if self._show_counts else shown

    def _singly(self, event: bytes) -> bytes:
        if self.failure is not None or event.startswith(FAILURE):
            self.failure = self.failure or event.removeprefix(DATA)
            return b""
        if event == DONE:
            self.done = True
        elif NO_CHOICES in event and USAGE.search(event):
            self._final = _usage_of(_parsed(event))
            return event + END if self._show_final else b""
        return self._counted(event + END)


class _Counts:
    """The latest count of each sequence, read only when it is needed where there is one sequence."""

    def __init__(self, choices: int, *, single: bool) -> None:
        self._choices = choices
        self._single = single
        self._latest = b""
        self._by_index: dict[int, Usage] = {}

    def add(self, events: bytes) -> None:
        if self._single:
            self._latest = events
        else:
            self._read(events)

    def sum(self) -> Usage:
        self._read(self._latest)
        # Sequences of one prompt follow each other, and each of them counts that prompt.
        prompts = {index // self._choices: usage.prompt_tokens for index, usage in self._by_index.items()}
        return Usage(sum(prompts.values()), sum(usage.completion_tokens for usage in self._by_index.values()))

    def _read(self, events: bytes) -> None:
        for event in events.split(END):
            if USAGE.search(event):
                parsed = _parsed(event)
                self._by_index[parsed["choices"][0]["index"]] = _usage_of(parsed)


def model_member(name: str) -> bytes:
    """The JSON member that names the model, as vLLM prints it."""
    return b'"model":' + orjson.dumps(name)


def usage_of_answer(body: bytes) -> Usage:
    """What an answer that is no stream has cost. Raises StreamBroken where it does not say."""
    return _usage_of(_parsed(body))


def _parsed(event: bytes) -> Any:
    try:
        return orjson.loads(event.removeprefix(DATA))
    except orjson.JSONDecodeError as error:
        raise StreamBroken("the replica sent what is no JSON") from error


def _usage_of(parsed: Any) -> Usage:
    try:
        usage = parsed["usage"]
        if "input_tokens" in usage:
            return Usage(int(usage["input_tokens"]), int(usage["output_tokens"]))
        return Usage(int(usage["prompt_tokens"]), int(usage["completion_tokens"] or 0))
    except (ValueError, TypeError, KeyError) as error:
        raise StreamBroken("the replica's answer has no usage") from error
