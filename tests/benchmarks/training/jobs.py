"""The small jobs as every way of training them gets them: examples as the preparer makes them, settings as resolved."""

import tempfile
from pathlib import Path
from typing import Any, cast

import datasets
from pydantic import BaseModel, TypeAdapter
from transformers import AutoTokenizer

from service.contracts.job import Hyperparameters
from trainer.data.prepare import Preparer
from trainer.protocol import Prepare

IGNORED = -100
"""The label of a token that is not trained on, to transformers and TRL."""


class SmallJob(BaseModel):
    seed: int
    hyperparameters: Hyperparameters
    input_ids: list[list[int]]
    labels: list[list[int]]

    @property
    def steps_an_epoch(self) -> int:
        return -(-len(self.input_ids) // self.hyperparameters.batch_size)

    @property
    def total_steps(self) -> int:
        return self.hyperparameters.n_epochs * self.steps_an_epoch


FILE = TypeAdapter(list[SmallJob])


def small_job(base: Path, settings: Hyperparameters, seed: int, lines: bytes) -> SmallJob:
    rows = _tokenised(base, settings.max_seq_length, lines)
    labels = [
        [token if weight else IGNORED for token, weight in zip(row["input_ids"], row["weights"], strict=True)]
        for row in rows
    ]
    return SmallJob(
        seed=seed, hyperparameters=settings, input_ids=[list(row["input_ids"]) for row in rows], labels=labels
    )


def _tokenised(base: Path, longest: int, lines: bytes) -> list[dict[str, Any]]:
    preparer = Preparer(AutoTokenizer.from_pretrained(base))
    with tempfile.TemporaryDirectory() as folder:
        source, prepared = Path(folder, "train.jsonl"), Path(folder, "prepared")
        source.write_bytes(lines)
        preparer.prepare(
            Prepare(
                job_id="ftjob-bench", role="training", path=str(source), out_dir=str(prepared), max_seq_length=longest
            )
        )
        return cast(datasets.Dataset, datasets.load_from_disk(str(prepared))).to_list()
