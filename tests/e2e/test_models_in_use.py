"""Models that change while they are asked for, and clients that leave: over the whole stack, asserted on texts.

Each model answers any prompt with its own three letters, so that an answer shows which weights gave it.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from itertools import count

import aiohttp
import pytest

from deploy.local import tiny_base
from service.contracts.manifest import ADAPTER_WEIGHTS
from service.contracts.replica import ReplicaStatus
from tests.benchmarks.serving.load import Answer, Server, ask, session
from tests.benchmarks.serving.marks import Marked, MarkMaker
from tests.benchmarks.serving.shop import Shop, Stall, Ware
from tests.e2e.stack import Stack

pytestmark = pytest.mark.stack

RIGHT_SECONDS = FREE_SECONDS = GONE_SECONDS = 1.0
FILES_SECONDS = 10.0
"""A replica hears of a deletion with its next heartbeat, and deletes once the last answer is over."""
LONG = 200
"""Tokens of an answer that goes on for seconds."""


@dataclass
class Scene:
    """A tenant of the stack with models of its own."""

    stack: Stack
    shop: Shop
    stall: Stall
    client: aiohttp.ClientSession
    made: Callable[[], Marked]

    async def say(self, ware: Ware, tokens: int = 8, **options: bool) -> Answer:
        return await ask(self.client, Server(self.stack.url, ware.key), ware.model, tokens, **options)

    async def status(self) -> ReplicaStatus:
        (row,) = await self.shop.replicas()
        headers = {"authorization": f"Bearer {row['api_key']}"}
        async with self.client.get(f"{row['url']}/v1/weft/status", headers=headers) as answer:
            return ReplicaStatus.model_validate_json(await answer.read())

    async def seconds_until_right(self, ware: Ware) -> float:
        """Until the first answer, which must be the model's own."""
        began = time.monotonic()
        while (answer := await self.say(ware, ignore_eos=False)).status != 200:
            assert answer.status == 503
            assert time.monotonic() < began + 10
        assert answer.text == ware.mark
        return time.monotonic() - began


@pytest.fixture(scope="module")
async def scene(stack: Stack) -> AsyncIterator[Scene]:
    maker, key = MarkMaker(tiny_base.MODEL_DIR), stack.project("in-use")
    seeds = zip(maker.marks(20), count(), strict=False)
    async with Shop(stack.data) as shop, session() as client:
        stall = await shop.stall(stack.url, key)
        yield Scene(stack, shop, stall, client, lambda: maker.make(*next(seeds)))


async def within(seconds: float, what: str, condition: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, f"{what} took over {seconds} s"


async def started(scene: Scene, ware: Ware) -> aiohttp.ClientResponse:
    """A long stream, after its first event."""
    message = {"role": "user", "content": "Go on."}
    body = {"model": ware.model, "messages": [message], "max_tokens": LONG, "ignore_eos": True}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    headers = {"authorization": f"Bearer {ware.key}"}
    answer = await scene.client.post(f"{scene.stack.base_url}/chat/completions", json=body, headers=headers)
    assert answer.status == 200
    await answer.content.readuntil(b"\n\n")
    return answer


async def test_a_deleted_model_ends_its_answer_is_unknown_from_then_on_and_leaves_no_file(scene: Scene) -> None:
    made = scene.made()
    ware = await scene.shop.put_on_sale(scene.stall, made.mark, made.files)
    assert (await scene.say(ware, ignore_eos=False)).text == made.mark
    folder = scene.stack.data.root / "adapters" / "adapters" / ware.adapter
    assert folder.is_dir()
    stream = await started(scene, ware)
    url, headers = f"{scene.stack.base_url}/models/{ware.model}", {"authorization": f"Bearer {ware.key}"}
    async with scene.client.delete(url, headers=headers) as deleted:
        assert deleted.status == 200

    async def unknown() -> bool:
        return (await scene.say(ware)).status == 404

    await within(GONE_SECONDS, "forgetting the model", unknown)
    assert ware.adapter in (await scene.status()).in_flight, "the answer is over too soon to show anything"
    received = await stream.read()
    assert b'"completion_tokens":%d' % LONG in received
    assert received.endswith(b"data: [DONE]\n\n")
    assert await unknown()
    assert await scene.shop.stored(ware) == []

    async def no_files() -> bool:
        return not folder.exists() and ware.adapter not in (await scene.status()).adapters

    await within(FILES_SECONDS, "deleting the files", no_files)


async def test_a_damaged_adapter_that_is_repaired_in_the_store_answers_right_within_a_second(scene: Scene) -> None:
    made = scene.made()
    weights = made.files[ADAPTER_WEIGHTS]
    damaged = made.files | {ADAPTER_WEIGHTS: weights[:-1] + bytes([weights[-1] ^ 1])}
    ware = await scene.shop.put_on_sale(scene.stall, made.mark, made.files, stored=damaged)
    assert (await scene.say(ware)).status == 503
    await scene.shop.store(ware.project, ware.adapter, made.files)
    assert await scene.seconds_until_right(ware) < RIGHT_SECONDS


async def test_a_missing_adapter_that_is_uploaded_later_answers_right_within_a_second(scene: Scene) -> None:
    made = scene.made()
    ware = await scene.shop.put_on_sale(scene.stall, made.mark, made.files, stored={})
    assert (await scene.say(ware)).status == 503
    await scene.shop.store(ware.project, ware.adapter, made.files)
    assert await scene.seconds_until_right(ware) < RIGHT_SECONDS


async def test_a_client_that_leaves_frees_its_slot_within_a_second(scene: Scene) -> None:
    made = scene.made()
    ware = await scene.shop.put_on_sale(scene.stall, made.mark, made.files)
    stream = await started(scene, ware)
    assert (await scene.status()).in_flight == {ware.adapter: 1}
    stream.close()

    async def free() -> bool:
        return not (await scene.status()).in_flight

    await within(FREE_SECONDS, "freeing the slot", free)
