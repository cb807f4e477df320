"""What engine tests share: an engine over the tiny base, and rows to train on."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from trainer.engine.adapter import Adapter, AdapterSettings, Measured, Work
from trainer.engine.base import load_engine
from trainer.engine.engine import Engine
from trainer.engine.optimizer import AdamParams
from trainer.engine.plan import Row

T = TypeVar("T")


@pytest.fixture
def engine(tiny_base_dir: Path) -> Engine:
    return load_engine(str(tiny_base_dir), "cpu", threads=1)


def rows(seed: int, count: int, longest: int = 60) -> list[Row]:
    """Rows of different lengths with the last part labelled."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        length = int(random.integers(8, longest))
        weights = np.zeros(length, dtype=np.float32)
        weights[int(random.integers(1, length - 1)) :] = 1.0
        made.append(Row(random.integers(4, 384, length).astype(np.int32), weights))
    return made


def settings(rank: int = 8, seed: int = 1, targets: str | tuple[str, ...] = "all-linear") -> AdapterSettings:
    return AdapterSettings(rank=rank, alpha=16.0, targets=targets, seed=seed)


def labelled(batch: list[Row]) -> float:
    return sum(row.labelled for row in batch)


def forward_backward(engine: Engine, adapter: Adapter, batch: list[Row], normaliser: float) -> Measured:
    """Of one adapter alone; raises what went wrong."""
    return only(engine.forward_backward([Work(adapter, batch, normaliser)]))


def evaluate(engine: Engine, adapter: Adapter, batch: list[Row]) -> Measured:
    return only(engine.evaluate([Work(adapter, batch)]))


def optim_step(engine: Engine, adapter: Adapter, params: AdamParams) -> float:
    return only(engine.optim_step([(adapter, params)]))


def only(outcomes: Sequence[T | Exception]) -> T:
    (outcome,) = outcomes
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def train_step(engine: Engine, adapter: Adapter, batch: list[Row], rate: float = 5e-3) -> Measured:
    return train_together(engine, [(adapter, batch, rate)])[0]


def train_together(engine: Engine, jobs: Sequence[tuple[Adapter, list[Row], float]]) -> list[Measured]:
    """One step of all of them at once."""
    outcomes = engine.forward_backward([Work(adapter, batch, labelled(batch)) for adapter, batch, _ in jobs])
    measured = [only([outcome]) for outcome in outcomes]
    steps = [(adapter, AdamParams(rate, weight_decay=0.01, max_grad_norm=1.0)) for adapter, _, rate in jobs]
    for norm in engine.optim_step(steps):
        only([norm])
    return measured
