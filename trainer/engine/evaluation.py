"""When a job is evaluated, which of its adapters is the best, and when going on is of no use. Pure functions.

Owns the rules alone. The passes are the engine's, keeping the best adapter's weights is `runner`'s.
"""

import math

from service.contracts.job import EarlyStopping
from trainer.checkpoint import Selection

LEAST_EVALUATIONS = 4


def evaluation_steps(steps_an_epoch: int, n_epochs: int) -> frozenset[int]:
    """After which steps: at every epoch's end, and at equal parts of few epochs so that there are enough in all."""
    parts = -(-LEAST_EVALUATIONS // n_epochs)
    return frozenset(
        epoch * steps_an_epoch + -(-part * steps_an_epoch // parts)
        for epoch in range(n_epochs)
        for part in range(1, parts + 1)
    )


def judged(before: Selection | None, step: int, loss: float, early: EarlyStopping | None) -> Selection | None:
    """What is decided after one more evaluation. A loss that is no number is never the best and never a gain."""
    if before is None:
        return Selection(step=step, loss=loss, reference=loss, stale=0) if math.isfinite(loss) else None
    best = {"step": step, "loss": loss} if loss < before.loss else {}
    gained = loss < before.reference * (1 - (early.min_delta if early else 0.0))
    since = {"reference": loss, "stale": 0} if gained else {"stale": before.stale + 1}
    return before.model_copy(update=best | since)


def exhausted(selection: Selection | None, early: EarlyStopping | None) -> bool:
    return selection is not None and early is not None and selection.stale >= early.patience


def why_stopped(step: int, early: EarlyStopping) -> str:
    evaluations = f"{early.patience} evaluations" if early.patience > 1 else "1 evaluation"
    gain = f" by {100 * early.min_delta:g} %" if early.min_delta else ""
    return f"Training stopped early at step {step}: validation loss has not improved{gain} in {evaluations}."
