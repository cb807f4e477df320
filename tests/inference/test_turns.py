"""Adapter slots: how many distinct adapters run, in which order the others come, and that no turn is ever lost."""

import asyncio

import pytest

from inference.problems import AdapterError
from inference.turns import Turns


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_running_adapter_takes_any_number_of_turns() -> None:
    turns = Turns(1, limit=4)
    assert all(turns.try_take("a") for _ in range(10))
    assert not turns.try_take("b")
    assert turns.running == {"a": 10}


async def test_waiters_run_in_order_as_slots_empty() -> None:
    turns = Turns(2, limit=10)
    order: list[str] = []

    async def visit(adapter: str) -> None:
        await turns.take(adapter)
        order.append(adapter)

    visits = [asyncio.create_task(visit(name)) for name in "abcdc"]
    await settle()
    assert order == ["a", "b"]
    turns.give_back("a")
    await settle()
    assert order == ["a", "b", "c"], "d waits, and the second c does not overtake it"
    turns.give_back("b")
    await asyncio.gather(*visits)
    assert order == ["a", "b", "c", "d", "c"]
    assert turns.running == {"c": 2, "d": 1}


async def test_queue_is_bounded() -> None:
    turns = Turns(1, limit=1)
    await turns.take("a")
    waiting = asyncio.create_task(turns.take("b"))
    await settle()
    with pytest.raises(AdapterError) as caught:
        await turns.take("c")
    assert caught.value.problem == "no_capacity"
    assert caught.value.headers == {"retry-after": "1"}
    waiting.cancel()


async def test_departed_waiter_leaves_the_queue() -> None:
    turns = Turns(1, limit=4)
    await turns.take("a")
    gone, next_ = asyncio.create_task(turns.take("b")), asyncio.create_task(turns.take("c"))
    await settle()
    gone.cancel()
    turns.give_back("a")
    await next_
    assert turns.running == {"c": 1}
    assert turns.waiting == 0


async def test_turn_granted_to_a_departing_waiter_is_handed_on() -> None:
    turns = Turns(1, limit=4)
    await turns.take("a")
    gone, next_ = asyncio.create_task(turns.take("b")), asyncio.create_task(turns.take("c"))
    await settle()
    turns.give_back("a")
    gone.cancel()
    await next_
    assert turns.running == {"c": 1}


async def test_busy_adapter_does_not_starve_the_queue() -> None:
    """A stream of overlapping requests to one adapter would hold the only slot for ever."""
    turns = Turns(1, limit=10, patience=0.05)
    await turns.take("busy")
    patient = asyncio.create_task(turns.take("patient"))
    overtook = 0

    async def stream() -> None:
        nonlocal overtook
        while not patient.done():
            newcomer = asyncio.create_task(turns.take("busy"))
            await asyncio.sleep(0.01)
            overtook += newcomer.done()
            turns.give_back("busy")
            if not newcomer.done():
                await patient
                newcomer.cancel()

    async with asyncio.timeout(5):
        await stream()
    assert overtook >= 2, "before its patience ends, overtaking keeps the slot busy"
    assert turns.running == {"patient": 1}
