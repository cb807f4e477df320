"""Jobs for rounds of chaos: healthy ones of several tenants, and such as no engine can train.

Owns what the jobs are. Who starts, kills and judges them is `training`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from tests.trainer.engine.jobs import start, write_rows
from trainer.engine.plan import Row
from trainer.folder import save_tensors
from trainer.protocol import Start

TENANTS = ("acme", "globex", "initech")

HEALTHY: dict[str, dict[str, object]] = {
    "ftjob-a": {"count": 9, "lora_rank": 4, "n_epochs": 4},
    "ftjob-b": {"count": 8, "lora_rank": 8, "n_epochs": 3, "validation": 6, "lr_scheduler": "cosine"},
    "ftjob-c": {"count": 6, "lora_rank": 16, "n_epochs": 4, "batch_size": 4, "weight_decay": 0.1},
    "ftjob-d": {"count": 7, "lora_rank": 32, "n_epochs": 3, "batch_size": 1, "max_grad_norm": 0.3},
    "ftjob-e": {"count": 10, "lora_rank": 8, "n_epochs": 3, "lr_scheduler": "constant", "target_modules": ("q_proj",)},
    "ftjob-f": {"count": 6, "lora_rank": 16, "n_epochs": 3, "method": "dpo", "validation": 4, "learning_rate": 1e-4},
    "ftjob-g": {"count": 9, "lora_rank": 32, "n_epochs": 5, "packing": True, "validation": 5},
}
LEARNING_RATE = 5e-4
"""As for bases of billions of weights. Rounding differs with the shapes of passes, and Adam makes steps of this size of
it where a gradient is near zero."""


def healthy(root: Path) -> list[Start]:
    """Their files are written once; each has a tenant."""
    made = []
    for number, (job_id, settings) in enumerate(HEALTHY.items()):
        command = start(root, job_id, **{"learning_rate": LEARNING_RATE, **settings})  # type: ignore[arg-type]
        spec = command.spec.model_copy(update={"project_id": TENANTS[number % len(TENANTS)]})
        made.append(command.model_copy(update={"spec": spec}))
    return made


@dataclass(frozen=True)
class Sick:
    """A job that must fail, and with what."""

    start: Start
    codes: frozenset[str]


def to_be_poisoned(root: Path) -> Start:
    return start(root, "ftjob-poisoned", count=8, n_epochs=30)


def sick(root: Path, checkpoint: Path) -> dict[str, Sick]:
    """By what is wrong with them. `checkpoint` is one of `to_be_poisoned`."""
    diverged, internal = frozenset({"loss_diverged"}), frozenset({"internal_error"})
    either, memory = diverged | internal, frozenset({"out_of_memory"})
    return {
        "absurd rate": Sick(start(root, "ftjob-rate", count=6, learning_rate=1e30), diverged),
        "poisoned checkpoint": Sick(_poisoned(to_be_poisoned(root), checkpoint), diverged),
        "foreign token": Sick(_spoilt(root, "ftjob-foreign", lambda row: _ids(row, 384)), internal),
        "negative token": Sick(_spoilt(root, "ftjob-negative", lambda row: _ids(row, -7)), internal),
        "weights that are no numbers": Sick(_spoilt(root, "ftjob-weights", lambda row: _weights(row, np.nan)), either),
        "nothing to learn": Sick(_spoilt(root, "ftjob-nothing", lambda row: _weights(row, 0.0)), either),
        "no files": Sick(start(root, "ftjob-files").model_copy(update={"training_dir": str(root / "gone")}), internal),
        "beyond the context": Sick(_spoilt(root, "ftjob-context", lambda _: _row(600)), internal | memory),
        "beyond the memory": Sick(_beyond_memory(root), memory),
    }


def _row(length: int) -> Row:
    random = np.random.default_rng(length)
    return Row(random.integers(4, 384, length).astype(np.int32), np.ones(length, dtype=np.float32))


def _ids(row: Row, token: int) -> Row:
    return Row(np.where(np.arange(len(row.input_ids)) == 3, token, row.input_ids).astype(np.int32), row.weights)


def _weights(row: Row, weight: float) -> Row:
    return Row(row.input_ids, np.full_like(row.weights, weight))


def _spoilt(root: Path, job_id: str, spoil: Callable[[Row], Row]) -> Start:
    command = start(root, job_id, count=5)
    write_rows(Path(command.training_dir), [spoil(_row(length)) for length in (20, 33, 41, 17, 26)])
    return command


def _poisoned(command: Start, checkpoint: Path) -> Start:
    """Its own checkpoint, of the right shapes, with numbers that are none."""
    weights = checkpoint / "adapter.safetensors"
    save_tensors(weights, {name: part.fill_(float("nan")) for name, part in load_file(weights).items()})
    return command.model_copy(update={"checkpoint_dir": str(checkpoint)})


def _beyond_memory(root: Path) -> Start:
    """Pairs share a pass with themselves over the base alone: four of the longest rows at the least."""
    command = start(root, "ftjob-memory", count=2, method="dpo", lora_rank=64, batch_size=8)
    write_rows(Path(command.training_dir), [_row(500), _row(501), _row(502), _row(499)])
    return command
