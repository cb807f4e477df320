"""What callers of the engine hold and get: adapters, the work they ask for, what came of it.

Owns these types and no behaviour; what happens with them is `engine`'s and `passes`'.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.engine.plan import Row
from trainer.engine.slots import SlotBank


class NonFinite(Exception):
    """The loss or a gradient was not finite. The adapter's weights and moments are as before the batch."""


class OutOfMemory(Exception):
    """Not even one row at a time fits."""


@dataclass(frozen=True)
class AdapterSettings:
    """What an adapter is, apart from its weights."""

    rank: int
    alpha: float
    targets: str | tuple[str, ...]
    seed: int


@dataclass(eq=False)
class Adapter:
    """A handle to one resident adapter. Only the engine looks inside."""

    settings: AdapterSettings
    bank: SlotBank
    slot: int
    trained: tuple[bool, ...]
    token_budget: int
    steps: int = 0
    accumulated: bool = False
    """Whether gradients wait for an optim_step."""


@dataclass(frozen=True)
class Work:
    """Rows of one adapter. `normaliser` is the labelled tokens of the whole optimizer batch that they are part of."""

    adapter: Adapter
    rows: Sequence[Row]
    normaliser: float = 1.0


@dataclass(frozen=True)
class Measured:
    """Weighted sums over labelled tokens."""

    loss: float
    correct: float
    weight: float

    def __add__(self, other: "Measured") -> "Measured":
        return Measured(self.loss + other.loss, self.correct + other.correct, self.weight + other.weight)

    @property
    def mean_loss(self) -> float:
        return self.loss / self.weight

    @property
    def accuracy(self) -> float:
        return self.correct / self.weight


Outcome = Measured | Exception
"""Of one work: an exception concerns that work alone."""
