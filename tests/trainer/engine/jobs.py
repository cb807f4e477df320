"""Jobs for engine tests: prepared folders, Start commands, and one job run alone to its end."""

from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np

from service.contracts.job import JobSpec
from service.contracts.worker import Event
from tests.trainer.engine.conftest import rows
from trainer.engine.engine import Engine
from trainer.engine.plan import Row
from trainer.engine.runner import JobRunner
from trainer.engine.scheduler import Scheduler
from trainer.engine.turns import step
from trainer.protocol import Line, Progress, Start, Trained

FEATURES = datasets.Features(
    {"input_ids": datasets.List(datasets.Value("int32")), "weights": datasets.List(datasets.Value("float32"))}
)

OVERFITTING = {
    "validation": 40,
    "n_epochs": 8,
    "learning_rate": 0.02,
    "lr_scheduler": "constant",
    "warmup_ratio": 0,
    "early_stopping": {"patience": 2, "min_delta": 0.002},
}
"""Random rows teach nothing about others: after two of eight epochs the validation loss rises."""

TIMINGS = {"tokens_per_second", "queue_wait_seconds"}
"""Of event data: what no second run repeats."""


def prepared(folder: Path, seed: int, count: int) -> list[Row]:
    """Writes a prepared folder as the preparer does; its rows."""
    made = rows(seed, count)
    write_rows(folder, made)
    return made


def pairs(seed: int, count: int) -> list[Row]:
    """Preferred answers of low tokens and others of high ones, each pair to one random prompt."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        prompt = random.integers(4, 384, int(random.integers(3, 20)))
        for low, high in ((4, 100), (200, 384)):
            answer = random.integers(low, high, int(random.integers(2, 20)))
            ids = np.concatenate((prompt, answer)).astype(np.int32)
            made.append(Row(ids, (np.arange(len(ids)) >= len(prompt)).astype(np.float32)))
    return made


def write_rows(folder: Path, made: list[Row]) -> None:
    columns = {"input_ids": [row.input_ids for row in made], "weights": [row.weights for row in made]}
    datasets.Dataset.from_dict(columns, features=FEATURES).save_to_disk(str(folder))


def start(
    root: Path,
    job_id: str = "ftjob-1",
    *,
    count: int = 7,
    validation: int = 0,
    checkpoint: str | None = None,
    fingerprint: str = "f",
    method: str = "supervised",
    **hyperparameters: object,
) -> Start:
    """A job of `count` examples, in batches of 2 for 3 epochs, with its files under `root`."""
    folder = root / job_id
    make = pairs if method == "dpo" else rows
    if not (folder / "training").exists():
        write_rows(folder / "training", make(sum(job_id.encode()), count))
        if validation:
            write_rows(folder / "validation", make(1000, validation))
    numbers = {"n_epochs": 3, "batch_size": 2, "learning_rate_multiplier": 1, "learning_rate": 1e-2, "lora_rank": 8}
    more = {"lora_alpha": 16, "warmup_ratio": 0.1, "lr_scheduler": "linear", "weight_decay": 0.01, "max_grad_norm": 1}
    beta = {"beta": 0.1} if method == "dpo" else {}
    about = {"job_id": job_id, "project_id": "p", "method": method, "chat_template_sha256": None}
    spec = JobSpec.model_validate(
        {
            "base_model": "tiny",
            "base_fingerprint": fingerprint,
            **about,
            "seed": 5,
            "examples": count,
            "hyperparameters": {**numbers, **more, **beta, "max_seq_length": 128, **hyperparameters},
            "rules": {},
        }
    )
    return Start(
        spec=spec,
        training_dir=str(folder / "training"),
        validation_dir=str(folder / "validation") if validation else None,
        checkpoint_dir=checkpoint,
        work_dir=str(folder / "work"),
    )


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def turn(engine: Engine, runner: JobRunner) -> None:
    """One step of one job alone; raises what ends it."""
    step(engine, Scheduler(engine.shared_budget), [runner], lambda _, work: work())


def run(engine: Engine, command: Start, turns: int = 10**6) -> list[Line]:
    """All that a job says until it is done, or for so many turns and then a stop that saves."""
    runner = JobRunner(engine, command, checkpoint_seconds=1e9)
    for _ in range(turns):
        turn(engine, runner)
        if runner.finished:
            break
    else:
        runner.stop(save=True)
    return runner.outbox


def events(said: Sequence[Line]) -> list[Event]:
    return [event for line in said if isinstance(line, Progress) for event in line.events]


def metrics(said: Sequence[Line]) -> list[dict[str, float]]:
    """The data of each step's event."""
    return [event.data for event in events(said) if event.type == "metrics"]


def timeless(said: Sequence[Line]) -> dict[str, Event]:
    """Events by id, without what no second run repeats; of one that was told twice, the second."""
    return {
        event.id: event.model_copy(
            update={"data": {name: value for name, value in event.data.items() if name not in TIMINGS}}
        )
        for event in events(said)
    }


def trained(said: Sequence[Line]) -> Trained:
    assert isinstance(said[-1], Trained)
    return said[-1]


def weights(said: Sequence[Line]) -> bytes:
    """Of the adapter that is delivered."""
    return adapter_bytes(trained(said).directory)


def adapter_bytes(directory: str) -> bytes:
    return (Path(directory) / "adapter_model.safetensors").read_bytes()
