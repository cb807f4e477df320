"""What jobs cost in memory, and whether one more fits: a formula over sizes known before anything is allocated.

Owns the formula and the account of who holds how much. What the machine has is `limits`', who is let in when is
`admission`'s. All bytes are of the memory that the base is in. A job costs a slot for as long as it is resident;
passes, checkpoints and growing banks are transient, one at a time, and the largest of them must find room at any time.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from trainer.engine.adapter import OutOfMemory
from trainer.engine.examples import EVALUATED_ROWS
from trainer.engine.plan import bucket
from trainer.engine.slots import ALIGNMENT, ModuleShape

FLOAT = 4
ROWS_OF_A_SLOT = 4
"""Weights, gradients and the two moments."""

LOGIT_COPIES = 4
"""Float32 numbers for each logit of a training pass: itself, its logarithm, and the gradients of the two."""

EVALUATED_LOGIT_COPIES = 2
"""No gradients there."""

WORKING_LAYERS = 3
"""Layers' worth of intermediate results, and of gradients, while a pass goes through one."""

CALIBRATION = 1.2
"""For passes, over what was measured to be 0.7 to 1.05 of the formula: `make bench-training-memory`."""

CHECKPOINT_COPIES = 6
"""Of what a job trains, while a checkpoint is written: weights and two moments, and each once more on the way."""

LEAST_BUDGET = 64
"""Padded tokens."""


class TooLarge(OutOfMemory):
    """The job would not fit if it were alone."""

    def __init__(self, needed: int, limit: int) -> None:
        super().__init__(needed, limit)
        self.needed, self.limit = needed, limit


@dataclass(frozen=True)
class BaseSize:
    """What the formula needs to know of a base. Numbers of values, not bytes, but for `item`."""

    layers: int
    hidden: int
    touched: int
    """What one token leaves in all linear layers together: inputs and outputs."""
    vocabulary: int
    item: int
    """Bytes of a value in the base's own arithmetic."""
    recompute: bool

    @classmethod
    def of(cls, model: PreTrainedModel, recompute: bool) -> "BaseSize":
        config: Any = model.config.get_text_config()
        head = model.get_output_embeddings()
        linears = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            touched=sum(linear.in_features + linear.out_features for linear in linears),
            vocabulary=len(model.get_input_embeddings().weight),  # pyright: ignore[reportArgumentType]
            item=model.dtype.itemsize,
            recompute=recompute,
        )

    def training_pass(self, tokens: int) -> int:
        """Bytes of forward and backward over padded tokens, any of which may be labelled."""
        layer = self.touched / self.layers
        kept = self.layers * self.hidden + layer if self.recompute else self.touched
        return self._bytes(tokens, kept + WORKING_LAYERS * layer, LOGIT_COPIES)

    def evaluation_pass(self, tokens: int) -> int:
        """Bytes of a forward pass alone, which keeps one layer at a time."""
        return self._bytes(tokens, WORKING_LAYERS * self.touched / self.layers, EVALUATED_LOGIT_COPIES)

    def _bytes(self, tokens: int, values: float, logit_copies: int) -> int:
        return int(CALIBRATION * tokens * (values * self.item + logit_copies * FLOAT * self.vocabulary))

    def budget(self, most: int, room: int) -> int:
        """Padded tokens of a pass that leaves half of `room` to the jobs, halved from `most` as running out would."""
        while most > LEAST_BUDGET and self.training_pass(most) > room // 2:
            most //= 2
        return most


@dataclass(frozen=True)
class Shape:
    """What the formula needs to know of a job."""

    rank: int
    """Its rank class."""
    own_rank: int
    trained: tuple[bool, ...]
    """Of the wrapped modules."""
    rows: int
    """In a batch."""
    longest: int
    """Tokens of the longest training row."""
    longest_validated: int
    """Tokens of the longest validation row; 0 without a validation file."""
    paired: bool


@dataclass(frozen=True)
class Need:
    """What a job costs. Its slot is the bank's, which holds more than it needs."""

    rank: int
    slot: int
    copies: int
    """For as long as it is resident."""
    transient: int
    """The largest of its own passes and of writing its checkpoint."""

    @property
    def alone(self) -> int:
        """Bytes it needs with nobody beside it."""
        return self.slot + self.copies + self.transient


@dataclass
class _Bank:
    slot: int
    taken: int = 0
    capacity: int = 0

    @property
    def grown(self) -> int:
        """Slots with one more taken: banks double, and give everything back with their last slot."""
        return self.capacity if self.taken < self.capacity else max(1, 2 * self.capacity)


@dataclass
class Account:
    """Who holds how much of `limit` bytes, and what another one would need."""

    base: BaseSize
    modules: tuple[ModuleShape, ...]
    limit: int
    token_budget: int
    shared_budget: int
    on_host: bool
    """Whether copies that are kept on the host take memory from the same place."""
    _banks: dict[int, _Bank] = field(default_factory=dict)
    _residents: dict[str, Need] = field(default_factory=dict)

    def need(self, job: Shape) -> Need:
        copies = copy_bytes(self.modules, job.own_rank, job.trained)
        return Need(
            rank=job.rank,
            slot=slot_bytes(self.modules, job.rank),
            copies=copies if self.on_host and job.longest_validated else 0,
            transient=max(self._training(job), self._validation(job), CHECKPOINT_COPIES * copies),
        )

    def needed(self, need: Need) -> int:
        """Bytes that must be free for the job to be let in now."""
        return max(self._growth(need), self._resident(need) + self._transient([*self._residents.values(), need])) - (
            self._resident()
        )

    @property
    def free(self) -> int:
        """Bytes that nobody holds; passes take theirs from these."""
        return self.limit - self._resident()

    def fits(self, need: Need) -> bool:
        return self.needed(need) <= self.free

    def enter(self, job_id: str, need: Need) -> None:
        bank = self._banks.setdefault(need.rank, _Bank(need.slot))
        bank.capacity, bank.taken = bank.grown, bank.taken + 1
        self._residents[job_id] = need

    def leave(self, job_id: str) -> None:
        need = self._residents.pop(job_id)
        bank = self._banks[need.rank]
        bank.taken -= 1
        if not bank.taken:
            del self._banks[need.rank]

    def _resident(self, another: Need | None = None) -> int:
        held = sum(bank.slot * bank.capacity for bank in self._banks.values())
        held += sum(need.copies for need in self._residents.values())
        if another is None:
            return held
        bank = self._banks.get(another.rank, _Bank(another.slot))
        return held + another.copies + another.slot * (bank.grown - bank.capacity)

    def _growth(self, need: Need) -> int:
        """A bank that grows is there as it was and as it will be for a moment, in which no pass runs."""
        bank = self._banks.get(need.rank, _Bank(need.slot))
        return self._resident() + (bank.slot * bank.grown if bank.grown > bank.capacity else 0)

    def _transient(self, needs: Sequence[Need]) -> int:
        """The largest pass: a job's own, or one that jobs share."""
        shared = self.base.training_pass(self.shared_budget)
        return max(max(need.transient for need in needs), min(shared, sum(need.transient for need in needs)))

    def _training(self, job: Shape) -> int:
        # A pair's rows share a pass, and each comes a second time for the base alone.
        least = bucket(job.longest) * (4 if job.paired else 1)
        tokens = max(least, min(self.token_budget, job.rows * least))
        # Gradients of the batch so far are kept aside, to go back to where a pass fails.
        aside = slot_bytes(self.modules, job.rank) // ROWS_OF_A_SLOT
        return self.base.training_pass(tokens) + aside

    def _validation(self, job: Shape) -> int:
        if not job.longest_validated:
            return 0
        least = bucket(job.longest_validated) * (4 if job.paired else 2)
        return self.base.evaluation_pass(max(least, min(self.token_budget, EVALUATED_ROWS * least)))


def slot_bytes(modules: Iterable[ModuleShape], rank: int) -> int:
    """One slot of a bank: every wrapped module's two factors, whichever of them the job trains."""
    floats = sum(_aligned(shape.inputs * rank) + _aligned(shape.outputs * rank) for shape in modules)
    return ROWS_OF_A_SLOT * FLOAT * floats


def copy_bytes(modules: Iterable[ModuleShape], rank: int, trained: Iterable[bool]) -> int:
    """One copy of the weights that a job trains, without padding. A checkpoint takes three."""
    parts = zip(modules, trained, strict=True)
    return FLOAT * rank * sum(shape.inputs + shape.outputs for shape, taken in parts if taken)


def _aligned(floats: int) -> int:
    return -(-floats // ALIGNMENT) * ALIGNMENT
