"""Adapters' products on CPUs: vLLM's own to the bit, the base untouched, no row near another tenant's weights."""

from types import SimpleNamespace

import pytest
import torch
from vllm.lora.ops.torch_ops import bgmv_expand_slice, bgmv_shrink

from inference.cpu_lora import Lone, Plan, Span, _rank, add, planned

SLOTS, MOST, WIDTH = 4, 16, 24
RANKS = {0: 8, 1: 4, 2: 16, 3: 1}
SLICES = ((40,), (24, 8, 8))
BATCHES = {
    "a prompt": [0] * 30,
    "one token": [2],
    "tokens of several": [0, 1, 2, 3],
    "tokens of one": [3, 3, 3],
    "prompts and tokens": [1, 3, 0, *[2] * 20, *[0] * 5, 1],
    "with the base between": [-1, 0, -1, -1, 2, 2, -1, 3, -1],
    "the base": [-1] * 6,
}


def weights(outs: tuple[int, ...]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Of all slots, each nothing beyond its rank, as vLLM lays them out."""
    chance = torch.Generator().manual_seed(len(outs))
    a = [torch.randn(SLOTS, 1, MOST, WIDTH, generator=chance).bfloat16() for _ in outs]
    b = [torch.randn(SLOTS, 1, out, MOST, generator=chance).bfloat16() for out in outs]
    for slot, rank in RANKS.items():
        for first, second in zip(a, b, strict=True):
            first[slot, :, rank:] = 0
            second[slot, ..., rank:] = 0
    return a, b


def rows(slots: list[int], outs: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(7)
    wide = torch.randn(len(slots), WIDTH, generator=chance).bfloat16()
    return torch.randn(len(slots), sum(outs), generator=chance).bfloat16(), wide


def vllms(slots: list[int], y: torch.Tensor, x: torch.Tensor, a: list[torch.Tensor], b: list[torch.Tensor]) -> None:
    """In place, of rows that all have adapters."""
    offset, of = 0, torch.tensor(slots)
    for first, second in zip(a, b, strict=True):
        shrunk = torch.zeros(len(slots), MOST)
        bgmv_shrink(x, first, shrunk, of)
        bgmv_expand_slice(shrunk, second, y, of, offset, second.shape[2])
        offset += second.shape[2]


@pytest.mark.parametrize("outs", SLICES)
@pytest.mark.parametrize("slots", BATCHES.values(), ids=BATCHES.keys())
def test_it_comes_to_what_vllm_computes(slots: list[int], outs: tuple[int, ...]) -> None:
    a, b = weights(outs)
    y, x = rows(slots, outs)
    expected = y.clone()
    adapted = [row for row, slot in enumerate(slots) if slot >= 0]
    if adapted:
        part = expected[adapted]
        vllms([slots[row] for row in adapted], part, x[adapted], a, b)
        expected[adapted] = part
    add(planned(slots, RANKS), y, x, a, b, 1.0)
    assert torch.equal(y, expected)


@pytest.mark.parametrize("slots", BATCHES.values(), ids=BATCHES.keys())
def test_a_neighbour_that_is_not_finite_changes_nothing(slots: list[int]) -> None:
    a, b = weights(SLICES[1])
    sound, x = rows(slots, SLICES[1])
    sick = sound.clone()
    add(planned(slots, RANKS), sound, x, a, b, 1.0)
    a[0][3], b[1][3] = float("nan"), float("inf")
    add(planned(slots, RANKS), sick, x, a, b, 1.0)
    others = [row for row, slot in enumerate(slots) if slot != 3]
    assert torch.equal(sick[others], sound[others])
    assert sick[others].isfinite().all()


def test_neighbouring_rows_of_an_adapter_are_one_product_and_lone_ones_another() -> None:
    plan = planned([-1, 1, 0, 2, 2, 2, -1, 1], RANKS)
    assert plan.spans == [Span(3, 6, 2, 16)]
    lone = plan.lone
    assert isinstance(lone, Lone)
    assert (lone.rows.tolist(), lone.slots.tolist(), lone.rank) == ([1, 2, 7], [1, 0, 1], 8)
    assert planned([-1, -1], RANKS) == Plan([])


def test_an_adapters_rank_is_the_largest_of_its_layers() -> None:
    layers = {
        "down": SimpleNamespace(lora_a=torch.zeros(4, WIDTH)),
        "qkv": SimpleNamespace(lora_a=[torch.zeros(8, WIDTH), None, torch.zeros(2, WIDTH)]),
    }
    manager = SimpleNamespace(_registered_adapters={5: SimpleNamespace(loras=layers)})
    assert _rank(manager, 5) == 8
