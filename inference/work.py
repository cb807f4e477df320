"""What vLLM's engine does for one request to the replica: how many tokens, and when it is done with all of it.

An answer's bytes say less: a client may leave before the count, and a slow one is at it long after the engine. vLLM
keeps a state for each sequence that it makes; those begun while a request is handled are that request's.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from inference.metering import Tokens

_current: ContextVar["Work | None"] = ContextVar("work", default=None)


class Stats(Protocol):
    num_generation_tokens: int


class State(Protocol):
    """One sequence in vLLM, which counts on until it ends."""

    prompt_len: int
    request_index: int
    """Of several answers to one prompt the number, from 0."""
    stats: Stats | None


class Work:
    def __init__(self) -> None:
        self._states: list[State] = []
        self._running = 0
        self._closed = False
        self.on_idle: Callable[[], None] | None = None
        """Called whenever the engine has ended all that it was asked for the request."""

    @contextmanager
    def asked(self) -> Iterator[None]:
        """What vLLM begins in the block, and in tasks made in it, is this request's."""
        _current.set(self)
        try:
            yield
        finally:
            _current.set(None)

    @property
    def began(self) -> bool:
        return bool(self._states)

    @property
    def tokens(self) -> Tokens | None:
        """So far. None where vLLM keeps no statistics."""
        prompt = completion = 0
        for state in self._states:
            if state.stats is None:
                return None
            prompt += state.prompt_len if state.request_index == 0 else 0
            completion += state.stats.num_generation_tokens
        return Tokens(prompt, completion)

    def close(self) -> bool:
        """Whether the engine has ended all of it; if so, nothing more may begin: the adapter may be gone."""
        self._closed = self._closed or not self._running
        return self._closed

    def begin(self, state: State) -> None:
        self._states.append(state)
        self._running += 1

    def end(self) -> None:
        self._running -= 1
        if not self._running and self.on_idle is not None:
            self.on_idle()

    def check_open(self) -> None:
        if self._closed:
            raise RuntimeError("vLLM began something for a request whose turn is over")


def current() -> Work | None:
    return _current.get()


def install() -> None:
    """Makes vLLM tell; in its API server, where the states are."""
    from vllm.v1.engine.output_processor import OutputProcessor

    add, finish = OutputProcessor.add_request, OutputProcessor._finish_request
    if hasattr(add, "tells"):
        return

    @functools.wraps(add)
    def add_request(processor: Any, request: Any, *args: Any, **options: Any) -> None:
        work = current()
        if work is not None:
            work.check_open()
        add(processor, request, *args, **options)
        if work is not None:
            state = processor.request_states[request.request_id]
            state.work = work
            work.begin(state)

    @functools.wraps(finish)
    def finish_request(processor: Any, state: Any) -> None:
        finish(processor, state)
        if hasattr(state, "work"):
            state.work.end()

    add_request.tells = True  # type: ignore[attr-defined]
    OutputProcessor.add_request = add_request  # type: ignore[method-assign]
    OutputProcessor._finish_request = finish_request  # type: ignore[method-assign]
