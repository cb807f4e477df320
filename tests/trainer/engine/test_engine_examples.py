"""What a job's batches hold: the order, pairs that stay together, and packs of several examples."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.engine.conftest import rows
from tests.trainer.engine.jobs import start, write_rows
from trainer.engine.examples import JobData, epoch_order
from trainer.engine.packing import pack

LIMIT = 64


def test_the_order_of_examples_is_a_permutation_that_epoch_and_seed_decide() -> None:
    first, second = epoch_order(5, 0, 100), epoch_order(5, 1, 100)
    assert sorted(first.tolist()) == list(range(100))
    assert np.array_equal(first, epoch_order(5, 0, 100))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, epoch_order(6, 0, 100))


def one_at_a_time(lengths: list[int], limit: int) -> list[list[int]]:
    """Best fit, longest first, as the textbook has it; the oldest of equally tight packs."""
    rooms: list[int] = []
    packs: list[list[int]] = []
    for example in sorted(range(len(lengths)), key=lambda example: -lengths[example]):
        fitting = [number for number, room in enumerate(rooms) if room >= lengths[example]]
        if not fitting:
            fitting = [len(rooms)]
            rooms.append(max(limit, lengths[example]))
            packs.append([])
        tightest = min(fitting, key=lambda number: rooms[number])
        rooms[tightest] -= lengths[example]
        packs[tightest].append(example)
    return packs


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(1, LIMIT + 5), min_size=1, max_size=60))
def test_packs_hold_every_example_once_and_are_as_tight_as_one_by_one(lengths: list[int]) -> None:
    packs = pack(np.array(lengths), LIMIT)
    held = [packs[number].tolist() for number in range(len(packs))]
    assert sorted(example for members in held for example in members) == list(range(len(lengths)))
    assert all(sum(lengths[example] for example in members) <= LIMIT or len(members) == 1 for members in held)
    assert all(members == sorted(members) for members in held)
    fills = sorted(sum(lengths[example] for example in members) for members in held)
    expected = one_at_a_time(lengths, LIMIT)
    assert fills == sorted(sum(lengths[example] for example in members) for members in expected)


def test_a_million_examples_are_packed_in_well_under_the_time_of_a_step_each() -> None:
    lengths = np.random.default_rng(1).integers(10, 600, 1_000_000)
    packs = pack(lengths, 2048)
    assert len(packs) == pytest.approx(lengths.sum() / 2048, rel=0.01)


def test_a_pack_is_one_row_that_knows_where_its_examples_begin(tmp_path: Path) -> None:
    command = start(tmp_path, count=9, packing=True, max_seq_length=128, batch_size=1)
    single = JobData(start(tmp_path, count=9, batch_size=1))
    packed = JobData(command)
    assert packed.steps_an_epoch < single.steps_an_epoch == 9
    parts = []
    for step in range(packed.steps_an_epoch):
        (row,) = packed.batch(step).rows
        assert len(row.input_ids) <= 128
        ids, weights = np.split(row.input_ids, row.starts[1:]), np.split(row.weights, row.starts[1:])
        parts += [(one.tolist(), other.tolist()) for one, other in zip(ids, weights, strict=True)]
        assert packed.batch(step).normaliser == row.labelled
    whole = [single.batch(step).rows[0] for step in range(9)]
    assert sorted(parts) == sorted((row.input_ids.tolist(), row.weights.tolist()) for row in whole)


def test_a_batch_of_pairs_counts_pairs_and_keeps_them_together(tmp_path: Path) -> None:
    data = JobData(start(tmp_path, method="dpo", count=7, validation=20))
    assert data.steps_an_epoch == 4
    assert [data.batch(step).normaliser for step in range(4)] == [2, 2, 2, 1]
    for step in range(4):
        batch = data.batch(step)
        assert len(batch.rows) == 2 * batch.normaliser
        for preferred, other in zip(batch.rows[::2], batch.rows[1::2], strict=True):
            prompt = int(np.flatnonzero(preferred.weights)[0])
            assert np.array_equal(preferred.input_ids[:prompt], other.input_ids[:prompt])
            assert preferred.input_ids[prompt:].max() < 200 <= other.input_ids[prompt:].min()
        assert batch.trained_tokens == sum(row.trained_tokens for row in batch.rows)
    epochs = [
        [tuple(row.input_ids) for step in span for row in data.batch(step).rows] for span in (range(4), range(4, 8))
    ]
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert epochs[0] != epochs[1]


def test_half_a_pair_is_refused(tmp_path: Path) -> None:
    command = start(tmp_path, method="dpo")
    write_rows(tmp_path / "half", rows(1, 3))
    with pytest.raises(ValueError, match="other half"):
        JobData(command.model_copy(update={"training_dir": str(tmp_path / "half")}))
