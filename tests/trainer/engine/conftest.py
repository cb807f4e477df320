"""What engine tests share: an engine over the tiny base, and rows to train on."""

from pathlib import Path

import numpy as np
import pytest

from trainer.engine.base import load_engine
from trainer.engine.engine import Adapter, AdapterSettings, Engine, Measured
from trainer.engine.optimizer import AdamParams
from trainer.engine.plan import Row


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


def train_step(engine: Engine, adapter: Adapter, batch: list[Row], rate: float = 5e-3) -> Measured:
    measured = engine.forward_backward(adapter, batch, labelled(batch))
    engine.optim_step(adapter, AdamParams(rate, weight_decay=0.01, max_grad_norm=1.0))
    return measured
