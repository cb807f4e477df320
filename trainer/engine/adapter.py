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
class Supervised:
    """Weighted negative log-likelihood of the labelled tokens."""


@dataclass(frozen=True)
class Preference:
    """DPO with the base itself as reference (arXiv 2305.18290, equation 7). Rows are pairs: preferred, then not."""

    beta: float


Objective = Supervised | Preference


@dataclass(frozen=True)
class Work:
    """Rows of one adapter. `normaliser` is what the loss of the whole optimizer batch is divided by: its labelled
    tokens, or its pairs where the objective is a preference.

    With `compared`, an evaluation also measures how far the adapter has moved from the base.
    """

    adapter: Adapter
    rows: Sequence[Row]
    normaliser: float = 1.0
    objective: Objective = Supervised()
    compared: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.objective, Preference):
            return
        if len(self.rows) % 2 or any(row.packed for row in self.rows):
            raise ValueError("The rows of a preference are pairs, and each is one example.")


@dataclass(frozen=True)
class Measured:
    """Sums that add up over the pieces of a batch or a validation file."""

    loss: float
    """Over labelled tokens by weight, or over pairs."""
    count: float
    """What `loss` is a sum over: the tokens' weights, or the number of pairs."""
    correct: float
    """Labelled tokens, by weight, that the most likely token is right about. Of a pair, the preferred row's."""
    weight: float
    """Of those tokens."""
    divergence: float = 0.0
    """KL(base ‖ adapter) in nats, over the same tokens by weight. Only of work that is compared."""
    margin: float = 0.0
    """Over pairs: how much more reward, beta times the log-ratio to the base, the preferred row gets."""
    won: float = 0.0
    """Pairs with a positive margin."""

    def __add__(self, other: "Measured") -> "Measured":
        ours, theirs = vars(self), vars(other)
        return Measured(**{name: ours[name] + theirs[name] for name in ours})

    @property
    def mean_loss(self) -> float:
        return self.loss / self.count

    @property
    def accuracy(self) -> float:
        return self.correct / self.weight


Outcome = Measured | Exception
"""Of one work: an exception concerns that work alone."""
