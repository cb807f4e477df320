"""When a job is evaluated, which adapter is the best, and when there is no use in going on: tables."""

import math

import pytest

from service.contracts.job import EarlyStopping
from trainer.checkpoint import Selection
from trainer.engine.evaluation import evaluation_steps, exhausted, judged, why_stopped


@pytest.mark.parametrize(
    ("steps_an_epoch", "n_epochs", "expected"),
    [
        (100, 1, [25, 50, 75, 100]),
        (10, 1, [3, 5, 8, 10]),
        (4, 2, [2, 4, 6, 8]),
        (4, 3, [2, 4, 6, 8, 10, 12]),
        (5, 3, [3, 5, 8, 10, 13, 15]),
        (4, 4, [4, 8, 12, 16]),
        (4, 6, [4, 8, 12, 16, 20, 24]),
        (1, 5, [1, 2, 3, 4, 5]),
        (1, 1, [1]),
        (2, 1, [1, 2]),
        (3, 1, [1, 2, 3]),
    ],
)
def test_every_epochs_end_and_equal_parts_of_few_epochs(
    steps_an_epoch: int, n_epochs: int, expected: list[int]
) -> None:
    assert sorted(evaluation_steps(steps_an_epoch, n_epochs)) == expected


def decisions(losses: list[float], early: EarlyStopping | None) -> list[tuple[int | None, bool]]:
    """After each evaluation: the best step, and whether training ends."""
    selection: Selection | None = None
    made = []
    for step, loss in enumerate(losses, 1):
        selection = judged(selection, step, loss, early)
        made.append((selection.step if selection else None, exhausted(selection, early)))
    return made


TWO = EarlyStopping()


@pytest.mark.parametrize(
    ("losses", "early", "expected"),
    [
        ([3.0, 2.0, 1.0], TWO, [(1, False), (2, False), (3, False)]),
        ([3.0, 2.0, 2.1, 2.2], TWO, [(1, False), (2, False), (2, False), (2, True)]),
        # A gain that is too small is the best all the same, and two of them may add up to enough.
        ([2.0, 1.995, 1.991], TWO, [(1, False), (2, False), (3, True)]),
        ([2.0, 1.995, 1.985], TWO, [(1, False), (2, False), (3, False)]),
        ([2.0, 2.1, 1.5, 1.6], TWO, [(1, False), (1, False), (3, False), (3, False)]),
        ([2.0, 2.0], EarlyStopping(patience=1, min_delta=0), [(1, False), (1, True)]),
        ([2.0, 1.999], EarlyStopping(patience=1, min_delta=0), [(1, False), (2, False)]),
        ([2.0, 2.1, 2.2, 1.9], None, [(1, False), (1, False), (1, False), (4, False)]),
        ([math.nan, 2.0, math.nan, math.inf], TWO, [(None, False), (2, False), (2, False), (2, True)]),
    ],
)
def test_the_lowest_loss_is_best_and_patience_counts_from_the_last_gain_that_counts(
    losses: list[float], early: EarlyStopping | None, expected: list[tuple[int | None, bool]]
) -> None:
    assert decisions(losses, early) == expected


def test_the_reason_is_told_in_the_owners_numbers() -> None:
    assert why_stopped(8, TWO) == (
        "Training stopped early at step 8: validation loss has not improved by 0.5 % in 2 evaluations."
    )
    assert why_stopped(3, EarlyStopping(patience=1, min_delta=0)) == (
        "Training stopped early at step 3: validation loss has not improved in 1 evaluation."
    )
