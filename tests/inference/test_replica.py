"""A whole replica: the real launcher, the real vLLM, a tiny random base, and a service that keeps every message.

The tests share one replica; those that kill it are in test_replica_life.
"""

import asyncio
import json
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from service.contracts.replica import REQUEST_ID_HEADER, SPENT_PATH, TENANT_HEADER, ReplicaOrders
from tests.inference.adapters import lora, lora_tensors
from tests.inference.hostile import HOSTILE
from tests.inference.neighbours import Neighbours, refusal
from tests.inference.running import (
    PROMPT,
    STALL_SECONDS,
    Replica,
    chat,
    publish,
    raw_request,
    read_to_the_end,
    seconds_until_idle,
    seconds_until_right,
    started,
    tokens_of,
)
from tests.inference.unlike import sound, unlike

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]


async def test_becomes_ready_and_says_so(ready: Replica) -> None:
    assert ready.service.heartbeats[0].state == "starting"
    assert ready.now.context_length == 256
    assert len(ready.now.api_key) >= 32
    assert "vLLM ready after" in ready.log.read_text()


async def test_base_and_adapters_answer_differently(ready: Replica) -> None:
    base, tier = await ready.chat("base")
    assert tier is None
    adapters = publish(ready, 1, 2, 3)
    answers = [await ready.chat(adapter) for adapter in adapters]
    assert [tier for _, tier in answers] == ["store"] * 3
    assert len({tuple(base), *(tuple(tokens) for tokens, _ in answers)}) == 4
    assert await ready.chat(adapters[-1]) == (answers[-1][0], "gpu")
    assert (await ready.chat("base"))[0] == base


async def test_stream_brings_chunks_and_usage(ready: Replica) -> None:
    (adapter,) = publish(ready, 1)
    body = chat(adapter, 8, stream=True, stream_options={"include_usage": True})
    headers = {"Authorization": f"Bearer {ready.now.api_key}"}
    async with ready.session.post(f"{ready.now.url}/v1/chat/completions", json=body, headers=headers) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert "x-adapter-cache" in response.headers
        events = [line[6:].strip() async for line in response.content if line.startswith(b"data: ")]
    assert events[-1] == b"[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert len(chunks) > 3
    assert chunks[-1]["usage"]["completion_tokens"] == 8


async def test_text_completions_take_the_same_way(ready: Replica) -> None:
    (adapter,) = publish(ready, 4)
    body = {"model": adapter, "prompt": PROMPT, "max_tokens": 2}
    status, answer, headers = await ready.post("/v1/completions", body)
    assert (status, headers["x-adapter-cache"]) == (200, "store")
    assert answer["model"] == adapter


@pytest.mark.parametrize("by", ["route", "order"])
async def test_evicted_adapter_is_gone_and_comes_back(ready: Replica, by: str) -> None:
    (adapter,) = publish(ready, 1)
    before, _ = await ready.chat(adapter)
    assert (ready.cache / adapter).is_dir()
    if by == "route":
        status, answer, _ = await ready.post("/v1/weft/adapters/evict", {"adapter_id": adapter})
        assert (status, answer["tier"]) == (200, None)
    else:
        ready.service.orders = ReplicaOrders(evict=(adapter,), heartbeat_seconds=0.2)
        await ready.until(lambda: not (ready.cache / adapter).exists(), "evicted", 20)
        ready.service.orders = ReplicaOrders(heartbeat_seconds=0.2)
        await asyncio.sleep(0.5)
    assert not (ready.cache / adapter).exists()
    await ready.chat("base")
    assert await ready.chat(adapter) == (before, "store")


async def test_ensure_warms_an_adapter(ready: Replica) -> None:
    (adapter,) = publish(ready, 5)
    status, answer, _ = await ready.post("/v1/weft/adapters/ensure", {"adapter_id": adapter})
    assert (status, answer) == (200, {"adapter_id": adapter, "tier": "store"})
    assert (await ready.chat(adapter))[1] == "gpu"
    status, answer, _ = await ready.post("/v1/weft/adapters/ensure", {"adapter_id": "0" * 64})
    assert (status, answer["error"]["code"]) == (404, "adapter_not_found")


async def test_six_adapters_at_once_over_two_slots(ready: Replica) -> None:
    adapters = publish(ready, *range(10, 16))
    alone = {adapter: await ready.chat(adapter) for adapter in adapters}
    answers = await asyncio.gather(*(ready.chat(adapter) for adapter in adapters * 4))
    assert len({tuple(tokens) for tokens, _ in alone.values()}) == 6
    for adapter, (tokens, _) in zip(adapters * 4, answers, strict=True):
        assert tokens == alone[adapter][0], "batched with others, each adapter answers as it does alone"
    assert (await ready.status())["in_flight"] == {}


async def test_base_among_adapters_answers_as_it_does_alone(ready: Replica) -> None:
    """vLLM for CPUs gave the base's rows the last slot's adapter once every slot was taken."""
    models = ["base", *publish(ready, 1, 2)]
    alone = {model: await ready.chat(model) for model in models}
    answers = await asyncio.gather(*(ready.chat(model) for model in models * 5))
    for model, (tokens, _) in zip(models * 5, answers, strict=True):
        assert tokens == alone[model][0], "base" if model == "base" else "an adapter"


async def test_vllm_knows_no_more_adapters_than_it_can_hold(ready: Replica) -> None:
    for adapter in publish(ready, *range(20, 26)):
        await ready.chat(adapter, 1)
    tiers = Counter((await ready.status())["adapters"].values())
    assert (tiers["gpu"], tiers["cpu"]) == (2, 2)
    await ready.until(lambda: len(ready.now.adapters) >= 4, "announced", 10)


async def test_departed_client_frees_its_slot(ready: Replica) -> None:
    (adapter,) = publish(ready, 1)
    response = await started(ready, chat(adapter, 200, stream=True))
    response.close()
    freed = await seconds_until_idle(ready)
    print(f"slot free {1000 * freed:.0f} ms after its client left")
    assert freed < 1
    assert (await ready.chat(adapter))[1] == "gpu"


async def test_reader_that_stops_holds_no_slot_and_is_cut_off(ready: Replica) -> None:
    """A gateway that hangs. What a slow client of a gateway costs is the gateway's."""
    (adapter,) = publish(ready, 1)
    body = json.dumps(chat(adapter, 200, stream=True, logprobs=True, top_logprobs=20)).encode()
    began = time.monotonic()
    with raw_request(ready, body, receive_buffer=4096) as connection:
        # Longer than the engine needs.
        await asyncio.sleep(STALL_SECONDS / 2)
        evicted, _, _ = await ready.post("/v1/weft/adapters/evict", {"adapter_id": adapter})
        assert evicted == 200
        assert (await ready.status())["in_flight"] == {adapter: 1}, "the engine is done, the reader is not"
        await seconds_until_idle(ready)
        cut = time.monotonic() - began
        with pytest.raises(ConnectionResetError):
            await asyncio.to_thread(read_to_the_end, connection)
    print(f"a reader that stopped was cut off after {cut:.1f} s of {STALL_SECONDS} s")
    assert STALL_SECONDS <= cut < STALL_SECONDS + 15, "from the request on, its prefill and first tokens included"
    assert (await ready.chat(adapter))[1] == "store"


async def test_engine_is_paid_for_what_a_departed_client_did_not_wait_for(ready: Replica) -> None:
    """A whole answer, of which not one byte was sent."""
    headers = {TENANT_HEADER: "departing", REQUEST_ID_HEADER: "req_departing"}
    with pytest.raises(TimeoutError):
        await ready.post("/v1/chat/completions", chat("base", 230), headers, seconds=0.3)
    await seconds_until_idle(ready)
    status, answer, _ = await ready.post(SPENT_PATH, {"ids": ["req_departing", "req_unknown"]})
    assert (status, list(answer["tokens"])) == (200, ["req_departing"])
    cost = answer["tokens"]["req_departing"]
    assert cost["prompt"] > 0
    assert 0 < cost["completion"] < 230
    assert await tokens_of(ready, "departing") == (cost["prompt"], cost["completion"])


async def test_deleted_while_answering(ready: Replica) -> None:
    """As the service does it: the model is gone from its database, and the replica is ordered to evict it."""
    (adapter,) = publish(ready, 8)
    whole = (await ready.chat(adapter, 150))[0]
    response = await started(ready, chat(adapter, 150, stream=True, return_token_ids=True))
    del ready.service.adapters[adapter]
    evicting = asyncio.create_task(ready.post("/v1/weft/adapters/evict", {"adapter_id": adapter}))
    await asyncio.sleep(0.05)
    late = asyncio.create_task(refusal(ready, adapter))
    lines = [line async for line in response.content if line.startswith(b"data: {")]
    tokens = [token for line in lines for choice in json.loads(line[6:])["choices"] for token in choice["token_ids"]]
    over = time.monotonic()
    assert whole[-len(tokens) :] == tokens, "what was in flight ends as it would have"
    assert len(tokens) >= 140
    assert (await late)[0] == "adapter_not_found"
    assert (await evicting)[0] == 200
    assert not (ready.cache / adapter).exists()
    print(f"files gone {1000 * (time.monotonic() - over):.0f} ms after the last answer's end")
    assert adapter not in (await ready.status())["adapters"]


async def test_repaired_and_late_adapters_answer_right_within_a_second(ready: Replica) -> None:
    """Right by their tokens: each adapter's own, known from an earlier answer."""
    first, second = publish(ready, 40, 41)
    texts = {adapter: (await ready.chat(adapter))[0] for adapter in (first, second)}
    assert texts[first] != texts[second]
    for adapter in texts:
        await ready.post("/v1/weft/adapters/evict", {"adapter_id": adapter})

    ready.service.damage = lambda sound: sound[:-1] + bytes([sound[-1] ^ 1])
    assert (await refusal(ready, first))[0] == "adapter_corrupt"
    ready.service.damage = None
    repaired = await seconds_until_right(ready, first, texts[first])

    late = ready.service.adapters.pop(second)
    assert (await refusal(ready, second))[0] == "adapter_not_found"
    ready.service.publish(late)
    uploaded = await seconds_until_right(ready, second, texts[second])
    print(f"right answers {1000 * repaired:.0f} ms after a repair, {1000 * uploaded:.0f} ms after an upload")
    assert max(repaired, uploaded) <= 1


async def test_metrics_are_ours(ready: Replica) -> None:
    page = await ready.metrics()
    assert 'weft_adapters_resident{tier="gpu"} 2.0' in page
    assert 'weft_tokens_total{kind="completion",tenant="weft-canary"}' in page
    assert "lora_requests_info" not in page


@pytest.mark.parametrize(
    "path", ["/v1/load_lora_adapter", "/invocations", "/tokenize", "/v1/responses/resp_1", "/adapters"]
)
async def test_vllms_other_routes_are_unreachable(ready: Replica, path: str) -> None:
    status, answer, _ = await ready.post(path, {"lora_name": "x", "lora_path": "/"})
    assert (status, answer["error"]["code"]) == (404, "not_found")


async def test_key_is_needed(ready: Replica) -> None:
    status, answer, _ = await ready.post("/v1/chat/completions", chat("base"), {"authorization": "Bearer wrong"})
    assert (status, answer["error"]["code"]) == (401, "invalid_api_key")


async def test_hostile_adapters_change_nothing_for_others(ready: Replica) -> None:
    """Of all of them and a hundred answers after each: `make chaos-hostile`."""
    neighbours = Neighbours(ready, answers=20)
    before = await neighbours.answers()
    for number, (kind, (make, reason)) in enumerate(HOSTILE.items()):
        code, told = await refusal(ready, ready.service.publish(make()))
        assert code == "adapter_invalid", kind
        assert reason in told, kind
        if number % 25 == 0:
            assert await neighbours.answers() == before, kind
    assert await neighbours.answers() == before


async def test_adapters_that_predict_something_else_are_refused(ready: Replica, tmp_path: Path) -> None:
    neighbours = Neighbours(ready, answers=20)
    before = await neighbours.answers()
    for kind, adapter in unlike(ready.base, tmp_path).items():
        code, told = await refusal(ready, ready.service.publish(adapter))
        assert code == "adapter_corrupt", kind
        assert "predicts other tokens than where it was trained" in told, kind
        assert (await ready.status())["adapters"].get(adapter.id) == "disk", kind
    for seed in range(3):
        alike = ready.service.publish(sound(ready.base, tmp_path / str(seed), seed=seed))
        assert await refusal(ready, alike) == ("", "")
    assert await neighbours.answers() == before


async def test_largest_admitted_values_change_nothing_for_others(ready: Replica) -> None:
    before = (await ready.chat("base"))[0]
    tensors = {name: torch.full_like(value, 1e3) for name, value in lora_tensors(1).items()}
    await ready.post("/v1/chat/completions", chat(ready.service.publish(lora(1, tensors=tensors, lora_alpha=256))))
    assert (await ready.chat("base"))[0] == before


async def test_service_outage_does_not_stop_serving(ready: Replica) -> None:
    (known,) = publish(ready, 1)
    await ready.chat(known)
    ready.service.service_status = 503
    assert (await ready.chat(known))[1] == "gpu"
    status, answer, headers = await ready.post("/v1/chat/completions", chat(publish(ready, 99)[0]))
    ready.service.service_status = None
    assert (status, answer["error"]["code"]) == (503, "adapter_storage_unavailable")
    assert "retry-after" in headers
