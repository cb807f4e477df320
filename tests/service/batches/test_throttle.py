"""How many requests of batches run at once, and whose is next."""

import asyncio
from contextlib import AsyncExitStack

from service.batches.throttle import CROWDED_SECONDS, REST_SECONDS, Throttle


class Scene:
    def __init__(self, most: int) -> None:
        self.busy, self.now = 0, 100.0
        self.running: list[str] = []
        self.most_at_once = 0
        self.throttle = Throttle(most, lambda: self.busy, lambda: self.now)

    async def ask(self, project: str) -> None:
        async with self.throttle.turn(project):
            self.running.append(project)
            await asyncio.sleep(0)


async def test_turns_go_round_robin_over_projects() -> None:
    scene = Scene(1)
    async with asyncio.TaskGroup() as group:
        for project in ("a", "a", "a", "b", "b", "c"):
            group.create_task(scene.ask(project))
    # The first one found nobody waiting.
    assert scene.running == ["a", "a", "b", "c", "a", "b"]


async def test_few_run_while_others_ask_and_one_while_replicas_are_crowded() -> None:
    scene = Scene(8)
    assert scene.throttle.limit == 8
    scene.busy = 3
    assert scene.throttle.limit == 2
    scene.busy = 0
    scene.throttle.saw(CROWDED_SECONDS / 2)
    assert scene.throttle.limit == 8
    scene.throttle.saw(CROWDED_SECONDS)
    assert scene.throttle.limit == 1
    scene.now += REST_SECONDS
    assert scene.throttle.limit == 8
    assert Scene(1).throttle.limit == 1


async def test_the_limit_holds_and_a_turn_given_up_is_the_next_ones() -> None:
    scene = Scene(2)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(scene.throttle.turn("a"))
        await stack.enter_async_context(scene.throttle.turn("a"))
        waiting = [asyncio.create_task(scene.ask(project)) for project in ("b", "c")]
        await asyncio.sleep(0)
        assert scene.running == []
        waiting[0].cancel()
    await waiting[1]
    assert scene.running == ["c"]
    async with scene.throttle.turn("d"), scene.throttle.turn("e"):
        pass


async def test_one_who_leaves_at_the_moment_of_its_turn_keeps_nobody_out() -> None:
    scene = Scene(1)
    async with scene.throttle.turn("a"):
        waiting = asyncio.create_task(scene.ask("b"))
        await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})
    async with asyncio.timeout(5), scene.throttle.turn("c"):
        pass
