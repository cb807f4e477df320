"""What a job learns from and is judged by: whole examples, batches of them, and the order that its seed decides.

An example is a row, a pack of rows, or a pair of them where the job learns a preference. Examples are read from disk
when a step needs them. What one row is, `rows` knows; who shares a pack, `packing`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from service.contracts.job import JobSpec
from trainer.engine.adapter import Adapter, Objective, Preference, Supervised, Work
from trainer.engine.packing import pack
from trainer.engine.plan import Row
from trainer.engine.rows import RowFile
from trainer.protocol import Start

EVALUATED_ROWS = 32
"""Read at a time: neither memory nor a turn grows with the validation file."""


class Examples(Protocol):
    """Examples by number, as the rows they have in a batch."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sequence[Row]: ...


class Single:
    """Each row is an example."""

    def __init__(self, file: RowFile) -> None:
        self._file = file

    def __len__(self) -> int:
        return len(self._file)

    def __getitem__(self, index: int) -> Sequence[Row]:
        return (self._file[index],)


class Pairs:
    """Two rows in a row: what is preferred, then what is not."""

    def __init__(self, file: RowFile) -> None:
        if len(file) % 2:
            raise ValueError("a preferred answer without its other half")
        self._file = file

    def __len__(self) -> int:
        return len(self._file) // 2

    def __getitem__(self, index: int) -> Sequence[Row]:
        return self._file[2 * index], self._file[2 * index + 1]


class Packed:
    """Several examples a row, as many as `limit` tokens hold."""

    def __init__(self, file: RowFile, limit: int) -> None:
        self._file, self._packs = file, pack(file.lengths, limit)

    def __len__(self) -> int:
        return len(self._packs)

    def __getitem__(self, index: int) -> Sequence[Row]:
        rows = [self._file[member] for member in self._packs[index].tolist()]
        ends = np.cumsum([len(row.input_ids) for row in rows]).tolist()
        ids, weights = [row.input_ids for row in rows], [row.weights for row in rows]
        return (Row(np.concatenate(ids), np.concatenate(weights), starts=(0, *ends[:-1])),)


@dataclass(frozen=True)
class Batch:
    """The rows of one optimizer step."""

    rows: Sequence[Row]
    normaliser: float

    @property
    def tokens(self) -> int:
        return sum(len(row.input_ids) for row in self.rows)

    @property
    def trained_tokens(self) -> int:
        return sum(row.trained_tokens for row in self.rows)


class JobData:
    """Both prepared folders of one job."""

    def __init__(self, start: Start) -> None:
        spec, settings = start.spec, start.spec.hyperparameters
        training = RowFile(Path(start.training_dir))
        validation = RowFile(Path(start.validation_dir)) if start.validation_dir else None
        self.files = [file for file in (training, validation) if file is not None]
        self.rows = len(training)
        self.objective = objective(spec)
        self.preference = isinstance(self.objective, Preference)
        if settings.packing and not self.preference:
            self._training: Examples = Packed(training, settings.max_seq_length)
        else:
            self._training = self._examples(training)
        self._validation = self._examples(validation) if validation is not None and len(validation) else None
        self._seed, self._batch_size = spec.seed, settings.batch_size
        self.steps_an_epoch = -(-len(self._training) // settings.batch_size)
        self._order = -1, np.empty(0, dtype=np.int64)

    @property
    def validated(self) -> bool:
        return self._validation is not None

    def batch(self, step: int) -> Batch:
        """That of the optimizer step after `step` others."""
        epoch, place = divmod(step, self.steps_an_epoch)
        if self._order[0] != epoch:
            self._order = epoch, epoch_order(self._seed, epoch, len(self._training))
        chosen = self._order[1][place * self._batch_size : (place + 1) * self._batch_size].tolist()
        rows = [row for index in chosen for row in self._training[index]]
        return Batch(rows, float(len(chosen)) if self.preference else sum(row.labelled for row in rows))

    def evaluation(self, adapter: Adapter) -> Iterator[Work]:
        """The whole validation file in parts, each read when it is asked for."""
        examples = self._validation
        if examples is None:
            return
        size = EVALUATED_ROWS // 2 if self.preference else EVALUATED_ROWS
        for first in range(0, len(examples), size):
            part = range(first, min(first + size, len(examples)))
            rows = [row for index in part for row in examples[index]]
            yield Work(adapter, rows, objective=self.objective, compared=True)

    def _examples(self, file: RowFile) -> Examples:
        return Pairs(file) if self.preference else Single(file)


def objective(spec: JobSpec) -> Objective:
    if spec.method == "supervised":
        return Supervised()
    if spec.hyperparameters.beta is None:
        raise ValueError("a preference without a beta")
    return Preference(spec.hyperparameters.beta)


def epoch_order(seed: int, epoch: int, examples: int) -> np.ndarray:
    """The order of the examples in one epoch: a function of these three alone."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(examples)
