"""What an adapter must predict to be let in, and what becomes of one that predicts something else."""

import math

import pytest

from inference.canary import LEAST_TOLERANCE, SPREADS, Unlike, compare, difference
from inference.runtime import Runtime
from service.contracts.manifest import AdapterManifest, Canary, adapter_id_of, canonical_json
from tests.inference.adapters import Adapter, lora, pack
from tests.inference.conftest import ServiceAndStorage
from tests.inference.stand_in import Call, StandIn, until

CANARY = Canary(prompt=(5, 6, 7), likely=(10, 20), logprobs=(-1.0, -2.0), spread=0.01)
SAME = {10: -1.02, 20: -1.97, 30: -9.0}
OTHER = {10: -4.0, 20: -0.5, 30: -9.0}


def with_canary(seed: int, canary: Canary = CANARY) -> Adapter:
    return pack(lora(seed).files, seed=seed, canary=canary)


def test_what_rounding_moves_is_the_same_adapter() -> None:
    compare(CANARY, SAME)
    assert difference(CANARY, SAME) == pytest.approx(0.025)


@pytest.mark.parametrize(
    "seen",
    [OTHER, {}, {10: math.nan, 20: -2.0}, {10: -1.0, 30: -4.0}, {40: -0.1, 50: -3.0}],
    ids=["others", "no answer", "not numbers", "one too unlikely to see", "other tokens"],
)
def test_what_rounding_cannot_move_is_another(seen: dict[int, float]) -> None:
    with pytest.raises(Unlike, match="predicts other tokens") as caught:
        compare(CANARY, seen)
    assert caught.value.problem == "adapter_corrupt"


def test_unlikely_token_that_was_not_seen_says_nothing() -> None:
    compare(Canary(prompt=(1,), likely=(10, 20), logprobs=(-0.1, -14.0), spread=0), {10: -0.1, 30: -13.0})


def test_adapter_that_rounding_moves_far_may_be_further_off() -> None:
    far = CANARY.model_copy(update={"spread": 0.5})
    gap = SPREADS * 0.5 - 0.01
    compare(far, {10: -1.0 - gap, 20: -2.0 + gap})
    with pytest.raises(Unlike):
        compare(CANARY, {10: -1.0 - LEAST_TOLERANCE - 0.01, 20: -2.0 + LEAST_TOLERANCE + 0.01})


def test_manifest_without_a_canary_is_what_it_always_was() -> None:
    plain = lora(1).manifest
    assert b"canary" not in canonical_json(plain)
    again = AdapterManifest.model_validate_json(canonical_json(plain))
    assert adapter_id_of(again) == adapter_id_of(plain) != adapter_id_of(with_canary(1).manifest)
    one = with_canary(1).manifest
    assert AdapterManifest.model_validate_json(canonical_json(one)) == one


@pytest.mark.usefixtures("quick")
class TestAtTheFirstLoad:
    async def test_same_predictions_let_it_in_and_are_asked_for_once(
        self, call: Call, service: ServiceAndStorage, vllm: StandIn, runtime: Runtime
    ) -> None:
        vllm.predicts = SAME
        adapter = service.publish(with_canary(1))
        assert (await call(adapter).done()).status == 200
        for seed in range(2, 7):
            await call(service.publish(lora(seed))).done()
        assert adapter not in vllm.folders, "five others took its place in vLLM"
        assert (await call(adapter).done()).headers["x-adapter-cache"] == "disk"
        assert vllm.loads[adapter] == 2
        assert vllm.canaries == {adapter: 1}, "an adapter without a canary is not asked"

    async def test_other_predictions_keep_it_out(
        self, call: Call, service: ServiceAndStorage, vllm: StandIn, runtime: Runtime
    ) -> None:
        vllm.predicts = OTHER
        adapter = service.publish(with_canary(1))
        answer = await call(adapter).done()
        assert (answer.status, answer.error["code"]) == (503, "adapter_corrupt")
        assert "predicts other tokens" in answer.error["message"]
        assert adapter not in vllm.folders
        assert vllm.bodies == [], "vLLM never saw the request"
        assert (await call(adapter).done()).status == 503
        assert vllm.canaries == {adapter: 1}, "the verdict stands for a while"

    async def test_nothing_is_unloaded_while_vllm_works_on_its_canary(
        self, call: Call, service: ServiceAndStorage, vllm: StandIn, runtime: Runtime
    ) -> None:
        vllm.predicts, vllm.thinks = SAME, 0.2
        adapter = service.publish(with_canary(1))
        client = call(adapter)
        await until(lambda: vllm.canaries[adapter] == 1)
        client.leave()
        await runtime.residency.evict(adapter, seconds=5)
        assert vllm.deaths == []
        assert adapter not in vllm.folders
        vllm.thinks = 0.0
        assert (await call(adapter).done()).status == 200
