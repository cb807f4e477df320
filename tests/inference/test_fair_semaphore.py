"""Few at a time, tenants in turn, one place kept for who holds none, and no place lost to a waiter that left."""

import asyncio

from inference.fair_semaphore import FairSemaphore
from tests.inference.test_turns import settle


async def test_tenants_take_turns() -> None:
    semaphore = FairSemaphore(1)
    order: list[str] = []

    async def visit(tenant: str) -> None:
        async with semaphore.held(tenant):
            order.append(tenant)
            await asyncio.sleep(0)

    await asyncio.gather(*(visit(tenant) for tenant in "aaaabc"))
    assert "".join(order) == "abcaaa"


async def test_who_comes_now_and_then_waits_for_nobodys_crowd() -> None:
    """However long the crowd has waited, and before whoever comes as often as it."""
    semaphore = FairSemaphore(1)
    order: list[str] = []
    turn = asyncio.Semaphore(0)

    async def visit(tenant: str) -> None:
        async with semaphore.held(tenant):
            await turn.acquire()
            order.append(tenant)

    tasks = [asyncio.create_task(visit(tenant)) for tenant in "aaaabb"]
    await settle()
    for _ in range(2):
        tasks.append(asyncio.create_task(visit("c")))
        await settle()
        for _ in range(2):
            turn.release()
            await settle()
    for _ in range(4):
        turn.release()
    await asyncio.gather(*tasks)
    assert "".join(order) == "abcabcaa"


async def test_place_is_kept_for_who_holds_none() -> None:
    semaphore = FairSemaphore(1, kept=1)
    done = asyncio.Event()
    holding: list[str] = []

    async def visit(tenant: str) -> None:
        async with semaphore.held(tenant):
            holding.append(tenant)
            await done.wait()

    tasks = [asyncio.create_task(visit(tenant)) for tenant in "aabb"]
    await settle()
    assert holding == ["a", "b"]
    done.set()
    await asyncio.gather(*tasks)
    assert sorted(holding) == ["a", "a", "b", "b"]


async def test_departed_waiter_loses_nobodys_place() -> None:
    semaphore = FairSemaphore(1)

    async def visit(tenant: str) -> None:
        async with semaphore.held(tenant):
            await asyncio.sleep(0)

    async with semaphore.held("a"):
        gone, stays = asyncio.create_task(visit("b")), asyncio.create_task(visit("c"))
        await settle()
        gone.cancel()
    async with asyncio.timeout(1):
        await stays
    late = asyncio.create_task(visit("d"))
    await settle()
    late.cancel()
    async with asyncio.timeout(1):
        await visit("e")
