"""Turns inside vLLM: how many adapters and requests at once, whose come next, and that no turn is ever lost."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from inference.problems import AdapterError
from inference.tenant import QUANTUM, Turn
from inference.turns import KEPT_PLACES, Limits, Turns

pytestmark = pytest.mark.timeout(30)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def take(turns: Turns, tenant: str, adapter: str | None, cost: float = 1.0) -> Turn:
    taken = turns.try_take(tenant, adapter, cost)
    if taken is not None:
        return taken
    turn = turns.join(tenant, adapter, cost)
    turns.ready(turn)
    try:
        await turn.granted
    except asyncio.CancelledError:
        turns.leave(turn, used=0.0)
        raise
    return turn


@asynccontextmanager
async def visit(turns: Turns, tenant: str, adapter: str | None) -> AsyncIterator[None]:
    turn = await take(turns, tenant, adapter, QUANTUM)
    try:
        yield
    finally:
        turns.leave(turn)


def wait_for(turns: Turns, tenant: str, adapter: str | None) -> asyncio.Task[Turn]:
    return asyncio.create_task(take(turns, tenant, adapter))


async def test_running_adapter_takes_any_number_of_turns() -> None:
    turns = Turns(Limits(1))
    assert all(turns.try_take("t", "a", 1) for _ in range(10))
    assert turns.try_take("t", "b", 1) is None
    assert turns.running == {"a": 10}


async def test_tenant_alone_takes_all_slots_but_the_kept_one() -> None:
    turns = Turns(Limits(4))
    assert [turns.try_take("flood", name, 1) is not None for name in "abcde"] == [True] * 3 + [False] * 2
    crowd = [wait_for(turns, "flood", name) for name in "defgh"]
    await settle()
    newcomer = turns.try_take("new", "x", 1)
    assert newcomer is not None, "the kept slot is there at once, whatever waits"
    assert turns.try_take("new", "y", 1) is None, "now it holds one like the others"
    turns.leave(newcomer)
    await settle()
    assert "d" not in turns.running, "and the slot is kept again"
    for task in crowd:
        task.cancel()


async def test_base_needs_no_slot_but_a_place() -> None:
    turns = Turns(Limits(1, in_flight=3, tenant_in_flight=2))
    assert turns.try_take("a", "x", 1)
    assert turns.try_take("a", None, 1)
    assert turns.try_take("a", None, 1) is None, "a tenant's bound"
    assert turns.try_take("b", None, 1)
    assert turns.try_take("b", None, 1) is None, "the bound of all"
    assert turns.try_take("c", None, 1), "places are kept for who has none"
    assert turns.in_flight.total() == 4


async def test_kept_places_are_bounded() -> None:
    turns = Turns(Limits(1, in_flight=2))
    assert turns.try_take("a", None, 1)
    assert turns.try_take("a", None, 1)
    given = sum(turns.try_take(f"t{number}", None, 1) is not None for number in range(50))
    assert given == KEPT_PLACES


async def test_tenants_and_then_their_adapters_take_turns() -> None:
    """One slot, so that each grant is one adapter's; tenant a has three adapters waiting before b has one."""
    turns = Turns(Limits(1, stint=0.0))
    order: list[str] = []
    first = await take(turns, "x", "first")

    async def one(tenant: str, adapter: str) -> None:
        async with visit(turns, tenant, adapter):
            order.append(adapter)
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(one(adapter[0], adapter)) for adapter in ("a1", "a1", "a2", "a3", "b1", "b1")]
    await settle()
    turns.leave(first)
    await asyncio.gather(*tasks)
    assert order.index("b1") <= 2
    assert order.index("a3") < len(order) - 1 - order[::-1].index("a1"), "a3 came before the last a1"
    assert (turns.running, turns.waiting, turns.in_flight.total()) == ({}, 0, 0)


async def test_two_floods_get_equal_tokens_whatever_they_claim() -> None:
    """Alike in demand; one claims ten times what it uses, the other claims too little."""
    turns = Turns(Limits(4, in_flight=8, stint=0.02))
    used: Counter[str] = Counter()
    over = asyncio.Event()

    async def client(tenant: str, adapter: str, claimed: float, real: int) -> None:
        while not over.is_set():
            turn = await take(turns, tenant, adapter, claimed)
            await asyncio.sleep(real / 100_000)
            turns.leave(turn, used=real)
            used[tenant] += real

    clients = [client("greedy", f"g{number % 10}", 1000, 100) for number in range(40)]
    clients += [client("modest", f"m{number % 10}", 10, 100) for number in range(40)]
    tasks = [asyncio.create_task(one) for one in clients]
    await asyncio.sleep(1.5)
    taken = dict(used)
    over.set()
    await asyncio.gather(*tasks)
    assert taken["greedy"] == pytest.approx(taken["modest"], rel=0.1)


async def test_long_answers_and_short_ones_get_equal_tokens() -> None:
    turns = Turns(Limits(4, in_flight=4))
    used: Counter[str] = Counter()
    over = asyncio.Event()

    async def client(tenant: str, real: int) -> None:
        while not over.is_set():
            turn = await take(turns, tenant, None, 256)
            await asyncio.sleep(0.002)
            turns.leave(turn, used=real)
            used[tenant] += real

    tasks = [
        asyncio.create_task(client(name, real)) for name, real in (("long", 400), ("short", 50)) for _ in range(20)
    ]
    await asyncio.sleep(1.5)
    taken = dict(used)
    over.set()
    await asyncio.gather(*tasks)
    assert taken["long"] == pytest.approx(taken["short"], rel=0.1)


async def test_lone_requests_do_not_wait_behind_a_flood() -> None:
    """Fifty adapters flooded over eight slots; another tenant asks for one adapter, again and again."""
    turns = Turns(Limits(8, in_flight=32, tenant_in_flight=24, stint=0.05))
    over = asyncio.Event()

    async def flood(adapter: str) -> None:
        while not over.is_set():
            async with visit(turns, "flood", adapter):
                await asyncio.sleep(0.02)

    tasks = [asyncio.create_task(flood(f"f{number % 50}")) for number in range(200)]
    await asyncio.sleep(0.2)
    loop, waits = asyncio.get_running_loop(), list[float]()
    for _ in range(50):
        began = loop.time()
        async with visit(turns, "lone", "mine"):
            waits.append(loop.time() - began)
            await asyncio.sleep(0.01)
    over.set()
    await asyncio.gather(*tasks)
    assert max(waits) < 0.05


async def test_who_has_had_more_than_its_share_is_no_newcomer() -> None:
    turns = Turns(Limits(2, in_flight=1))
    running = await take(turns, "a", None)
    greedy = [await take(turns, "b", None, 10_000)]
    waiting = wait_for(turns, "b", None)
    await settle()
    turns.leave(greedy.pop())
    await settle()
    assert not waiting.done(), "no place is kept for who was just served, while another is"
    turns.leave(running)
    turns.leave(await waiting)


async def test_no_adapter_of_a_flood_starves() -> None:
    turns = Turns(Limits(3, stint=0.02))
    served: Counter[str] = Counter()
    over = asyncio.Event()

    async def client(adapter: str) -> None:
        while not over.is_set():
            async with visit(turns, "t", adapter):
                served[adapter] += 1
                await asyncio.sleep(0.005)

    tasks = [asyncio.create_task(client(f"a{number % 12}")) for number in range(48)]
    await asyncio.sleep(1.5)
    over.set()
    await asyncio.gather(*tasks)
    assert len(served) == 12
    assert min(served.values()) > max(served.values()) / 3


async def test_only_slot_of_a_tenant_is_not_taken_by_a_richer_one() -> None:
    """The lone adapter's requests overlap without end; the flood that waits for slots has others to run empty."""
    turns = Turns(Limits(4, stint=0.01))
    lone = [await take(turns, "lone", "mine")]
    flood = [await take(turns, "flood", name) for name in "ab"]
    waiting = wait_for(turns, "flood", "c")
    await asyncio.sleep(0.03)
    again = turns.try_take("lone", "mine", 1)
    assert again is not None
    assert turns.try_take("flood", "a", 1) is None, "its own adapter waits, so this one has had its stint"
    for turn in [*lone, again, *flood]:
        turns.leave(turn)
    await waiting


async def test_queues_are_bounded_and_say_when_to_come_back() -> None:
    turns = Turns(Limits(1, waiting=4, tenant_waiting=3))
    running = await take(turns, "a", "a")
    crowd = [wait_for(turns, "a", "b") for _ in range(3)]
    await settle()
    with pytest.raises(AdapterError) as caught:
        turns.join("a", "b", 1)
    assert caught.value.problem == "no_capacity"
    assert int(caught.value.headers["retry-after"]) >= 1
    other = wait_for(turns, "b", "c")
    await settle()
    assert turns.waiting == 4, "another's crowd does not fill the queue for this one"
    third = wait_for(turns, "c", "d")
    await settle()
    assert turns.waiting == 5, "nor for a tenant that has nothing waiting"
    turns.leave(running)
    for task in (*crowd, other, third):
        turns.leave(await task)


async def test_bytes_that_wait_are_bounded_like_requests() -> None:
    turns = Turns(Limits(1, waiting_bytes=100, tenant_waiting_bytes=60))
    running = await take(turns, "a", "a")
    large = turns.join("a", "b", 1, size=50)
    with pytest.raises(AdapterError) as caught:
        turns.join("a", "b", 1, size=11)
    assert caught.value.problem == "no_capacity"
    assert "retry-after" in caught.value.headers
    other = turns.join("b", "c", 1, size=50)
    with pytest.raises(AdapterError):
        turns.join("b", "c", 1, size=1)
    alone = turns.join("c", "d", 1, size=60)
    with pytest.raises(AdapterError):
        turns.join("d", "e", 1, size=41)
    turns.leave(large)
    turns.join("d", "e", 1, size=60)
    turns.leave(other)
    turns.leave(alone)
    turns.leave(running)
    again = turns.join("a", "b", 1, size=60)
    turns.ready(again)
    await again.granted
    turns.join("a", "b", 1, size=60)


async def test_retry_after_follows_the_queues_own_speed() -> None:
    turns = Turns(Limits(1, in_flight=1, tenant_in_flight=1))
    running = await take(turns, "t", None)
    crowd = [wait_for(turns, "t", None) for _ in range(60)]
    await settle()
    for task in crowd[:20]:
        await asyncio.sleep(0.05)
        turns.leave(running)
        running = await task
    assert 1.5 <= turns.seconds_to_wait("t") <= 6, "40 wait, and 20 a second go"
    for task in crowd:
        task.cancel()


async def test_request_that_is_not_ready_does_not_hold_up_others() -> None:
    turns = Turns(Limits(2, in_flight=1))
    running = await take(turns, "t", None)
    fetching = turns.join("t", "cold", 1)
    behind = wait_for(turns, "t", "warm")
    await settle()
    turns.leave(running)
    turn = await behind
    assert not fetching.granted.done()
    turns.ready(fetching)
    turns.leave(turn)
    await fetching.granted
    turns.leave(fetching)
    assert turns.in_flight.total() == 0


async def test_departed_waiter_leaves_the_queue() -> None:
    turns = Turns(Limits(1))
    running = await take(turns, "t", "a")
    gone, next_ = wait_for(turns, "t", "b"), wait_for(turns, "t", "c")
    await settle()
    gone.cancel()
    turns.leave(running)
    turns.leave(await next_)
    assert (turns.waiting, turns.in_flight.total()) == (0, 0)


async def test_turn_granted_to_a_departing_waiter_is_handed_on() -> None:
    turns = Turns(Limits(1))
    running = await take(turns, "t", "a")
    gone, next_ = wait_for(turns, "t", "b"), wait_for(turns, "t", "c")
    await settle()
    turns.leave(running)
    gone.cancel()
    turns.leave(await next_)
    assert (turns.running, turns.in_flight.total()) == ({}, 0)
