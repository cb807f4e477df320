"""Jobs for engine tests: prepared folders and Start commands."""

from pathlib import Path

import datasets

from service.contracts.job import JobSpec
from tests.trainer.engine.conftest import rows
from trainer.engine.plan import Row
from trainer.protocol import Start

FEATURES = datasets.Features(
    {"input_ids": datasets.List(datasets.Value("int32")), "weights": datasets.List(datasets.Value("float32"))}
)


def prepared(folder: Path, seed: int, count: int) -> list[Row]:
    """Writes a prepared folder as the preparer does; its rows."""
    made = rows(seed, count)
    write_rows(folder, made)
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
    **hyperparameters: object,
) -> Start:
    """A job of `count` rows, in batches of 2 for 3 epochs, with its files under `root`."""
    folder = root / job_id
    if not (folder / "training").exists():
        prepared(folder / "training", seed=sum(job_id.encode()), count=count)
        if validation:
            prepared(folder / "validation", seed=1000, count=validation)
    numbers = {"n_epochs": 3, "batch_size": 2, "learning_rate_multiplier": 1, "learning_rate": 1e-2, "lora_rank": 8}
    more = {"lora_alpha": 16, "warmup_ratio": 0.1, "lr_scheduler": "linear", "weight_decay": 0.01, "max_grad_norm": 1}
    spec = JobSpec.model_validate(
        {
            "job_id": job_id,
            "project_id": "p",
            "base_model": "tiny",
            "base_fingerprint": fingerprint,
            "chat_template_sha256": None,
            "seed": 5,
            "examples": count,
            "hyperparameters": {**numbers, **more, "max_seq_length": 128, **hyperparameters},
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
