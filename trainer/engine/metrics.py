"""What sums over a batch or a validation file are called when they are told. Owns names and means.

OpenAI's names where OpenAI has one; in metrics events and on checkpoint models alike.
"""

import math

from service.contracts.worker import CheckpointMetrics
from trainer.checkpoint import StepMetrics
from trainer.engine.adapter import Measured
from trainer.engine.pace import StepPace

Evaluated = dict[str, float]
"""The metrics of one evaluation by name, without those that are no finite number."""


def of_step(measured: Measured, preference: bool, rate: float, norm: float, pace: StepPace) -> StepMetrics:
    return StepMetrics(
        train_loss=measured.mean_loss,
        train_mean_token_accuracy=measured.accuracy,
        train_reward_accuracy=measured.won / measured.count if preference else None,
        train_reward_margin=measured.margin / measured.count if preference else None,
        learning_rate=rate,
        grad_norm=norm,
        tokens_per_second=pace.tokens_per_second,
        queue_wait_seconds=pace.queue_wait_seconds,
        step_share=pace.step_share,
    )


def of_evaluation(measured: Measured, preference: bool) -> Evaluated:
    found = {"loss": measured.mean_loss, "mean_token_accuracy": measured.accuracy}
    if preference:
        found["reward_accuracy"] = measured.won / measured.count
        found["reward_margin"] = measured.margin / measured.count
    # One pass over the whole file serves both of OpenAI's names; there is no smaller sample of it.
    named = {f"{prefix}_{name}": value for prefix in ("valid", "full_valid") for name, value in found.items()}
    named["full_valid_mean_kl"] = measured.divergence / measured.weight
    return {name: value for name, value in named.items() if math.isfinite(value)}


def of_checkpoint_model(step: int, trained: StepMetrics, evaluated: Evaluated) -> CheckpointMetrics:
    """What the service keeps of them; events have the rest."""
    known = {**trained.model_dump(), **evaluated}
    return CheckpointMetrics.model_validate(
        {"step": step, **{name: known[name] for name in CheckpointMetrics.model_fields if name in known}}
    )
