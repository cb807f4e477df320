"""Which jobs share a pass: as many as cost least together, by padded tokens and a price for each pass."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from trainer.engine.plan import PASS_TOKENS, Demand, MicroBatch, Row, bucket, plan

BUDGET = 512


def demands(lengths: Sequence[int]) -> list[Demand]:
    rows = [Row(np.arange(length, dtype=np.int32), np.ones(length, dtype=np.float32)) for length in lengths]
    return [Demand([row], 1.0, BUDGET, (8, slot)) for slot, row in enumerate(rows)]


def cost(batches: Sequence[MicroBatch]) -> int:
    return sum(batch.input_ids.numel() + PASS_TOKENS for batch in batches)


def least(lengths: Sequence[int]) -> int:
    """Over every way to cut the jobs, longest first, into passes."""
    widths = sorted(map(bucket, lengths), reverse=True)
    found = []
    for cuts in itertools.product((False, True), repeat=len(widths) - 1):
        ends = [0, *(place + 1 for place, cut in enumerate(cuts) if cut), len(widths)]
        passes = [widths[start:stop] for start, stop in itertools.pairwise(ends)]
        if all(len(each) * each[0] <= BUDGET for each in passes):
            found.append(sum(len(each) * each[0] + PASS_TOKENS for each in passes))
    return min(found)


@pytest.mark.parametrize("seed", range(20))
def test_passes_cost_as_little_as_any_way_to_share_them(seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(4, (60, 200, 500)[seed % 3], 8).tolist()
    batches = plan(demands(lengths), BUDGET)
    assert cost(batches) == least(lengths)
    assert sorted(share.demand for batch in batches for share in batch.shares) == list(range(len(lengths)))


def test_a_last_short_row_is_no_pass_of_its_own() -> None:
    assert len(plan(demands([56, 56, 48, 48, 40, 40, 40, 32]), BUDGET)) == 1
