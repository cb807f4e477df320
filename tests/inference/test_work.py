"""What the engine did for a request: counted over all its sequences, and over only when all of them are."""

import asyncio
from types import SimpleNamespace

import pytest

from inference.metering import Tokens
from inference.work import State, Work, current


def sequence(prompt: int, generated: int, index: int = 0) -> State:
    stats = SimpleNamespace(num_generation_tokens=generated)
    return SimpleNamespace(prompt_len=prompt, request_index=index, stats=stats)


def test_all_sequences_count_and_a_prompt_once_for_all_its_answers() -> None:
    work = Work()
    for state in (sequence(7, 5, index=0), sequence(7, 6, index=1), sequence(3, 1)):
        work.begin(state)
    assert work.tokens == Tokens(10, 12)


def test_tokens_are_those_of_now() -> None:
    work, state = Work(), sequence(7, 1)
    work.begin(state)
    assert state.stats is not None
    state.stats.num_generation_tokens = 9
    assert work.tokens == Tokens(7, 9)


def test_without_statistics_nobody_knows() -> None:
    work, state = Work(), sequence(7, 1)
    state.stats = None
    work.begin(state)
    assert work.tokens is None


def test_it_is_idle_when_the_last_sequence_ends_and_closed_only_then() -> None:
    work, idle = Work(), list[None]()
    work.on_idle = lambda: idle.append(None)
    work.begin(sequence(1, 1))
    work.begin(sequence(1, 1))
    work.end()
    assert not idle
    assert not work.close()
    work.check_open()
    work.end()
    assert len(idle) == 1
    assert work.close()
    with pytest.raises(RuntimeError, match="over"):
        work.check_open()


async def test_what_a_task_begins_is_the_requests_it_was_made_for() -> None:
    async def handler() -> Work | None:
        await asyncio.sleep(0)
        return current()

    first, second = Work(), Work()
    with first.asked():
        task = asyncio.create_task(handler())
    with second.asked():
        assert await handler() is second
    assert await task is first
    assert current() is None
