"""The engine's internal interface: create_adapter, forward_backward, optim_step, save, load, export, release.

Owns the base model, the banks and the adapters in them. Knows nothing of jobs, files of examples or the agent: the job
runner is its first client, not its only one. Calls concern one adapter each and leave every other one bitwise alone.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trainer.engine.optimizer import AdamParams, adamw_step, gradient_norm
from trainer.engine.plan import MicroBatch, Row, plan
from trainer.engine.slots import ModuleShape, SlotBank, initial_a, rank_class
from trainer.engine.step import Stepper, Sums
from trainer.engine.wrap import Routing, freeze, recompute_layers, trained_modules, wrap_linears
from trainer.export import AdapterFacts, target_modules, write_adapter

log = logging.getLogger("trainer.engine")


class NonFinite(Exception):
    """The loss or a gradient was not finite. The adapter's weights and moments are as before the batch."""


class TokensOutOfRange(Exception):
    """Rows hold a token or a position that the base has no embedding for."""


class OutOfMemory(Exception):
    """Not even one row at a time fits."""


@dataclass(frozen=True)
class AdapterSettings:
    """What an adapter is, apart from its weights."""

    rank: int
    alpha: float
    targets: str | tuple[str, ...]
    seed: int


@dataclass
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


class Engine:
    """Many adapters over one frozen base model."""

    def __init__(self, model: PreTrainedModel, stored: torch.dtype, token_budget: int, recompute: bool) -> None:
        freeze(model)
        if recompute:
            recompute_layers(model)
        self._stored = stored
        self._token_budget = token_budget
        self._routing = Routing()
        self.modules: tuple[ModuleShape, ...] = wrap_linears(model, self._routing)
        self._stepper = Stepper(model)
        self._vocabulary = len(model.get_input_embeddings().weight)  # pyright: ignore[reportArgumentType]
        self._context: int | None = getattr(model.config, "max_position_embeddings", None)
        self._banks: dict[int, SlotBank] = {}
        self.after_pass: Callable[[], None] = lambda: None
        """Called after each pass over the model, so that a batch of many passes need not look like a hang."""

    def check_rows(self, largest_token: int, longest: int) -> None:
        """Raises TokensOutOfRange. On an accelerator such a row would break the device for every other adapter."""
        if largest_token >= self._vocabulary or (self._context is not None and longest > self._context):
            raise TokensOutOfRange

    def create_adapter(self, settings: AdapterSettings) -> Adapter:
        """A new adapter that changes nothing yet: A random by its seed, B zero. Raises UnknownTarget."""
        trained = trained_modules(settings.targets, self.modules)
        size = rank_class(settings.rank)
        if size not in self._banks:
            self._banks[size] = SlotBank(size, self.modules, self._stepper.device)
        bank = self._banks[size]
        try:
            slot = bank.allocate(settings.alpha / settings.rank, trained)
        except (RuntimeError, MemoryError) as error:
            raise OutOfMemory from _memory_only(error)
        adapter = Adapter(settings, bank, slot, trained, self._token_budget)
        for number in self._numbers(adapter):
            left, _ = bank.pair(bank.values, slot, number)
            left[:, : settings.rank] = initial_a(settings.seed, self.modules[number], settings.rank)
        return adapter

    def forward_backward(self, adapter: Adapter, rows: Sequence[Row], normaliser: float) -> Measured:
        """Adds the gradient of the rows' weighted loss sum over `normaliser` to what waits for the next optim_step.

        `normaliser` is the labelled tokens of the whole optimizer batch, whatever part of it these rows are.
        Raises NonFinite, after which no gradient waits, and OutOfMemory.
        """
        waiting = adapter.bank.grads[adapter.slot].clone() if adapter.accumulated else None
        while True:
            batches = plan(rows, adapter.token_budget)
            measured = self._attempt(adapter, batches, normaliser)
            if measured is not None:
                break
            self._restore(adapter, waiting)
            self._shrink(adapter, batches)
        if not math.isfinite(measured.loss):
            self._restore(adapter, None)
            raise NonFinite
        adapter.accumulated = True
        return measured

    def evaluate(self, adapter: Adapter, rows: Sequence[Row]) -> Measured:
        """The same sums without gradients."""
        while True:
            batches = plan(rows, adapter.token_budget)
            measured = self._attempt(adapter, batches, None)
            if measured is not None:
                return measured
            self._shrink(adapter, batches)

    def optim_step(self, adapter: Adapter, params: AdamParams) -> float:
        """One AdamW step with the waiting gradients; their norm before clipping. Raises NonFinite, changing nothing."""
        norm = gradient_norm(adapter.bank, adapter.slot)
        if not math.isfinite(norm):
            self._restore(adapter, None)
            raise NonFinite
        adamw_step(adapter.bank, adapter.slot, adapter.steps, norm, params)
        adapter.steps += 1
        adapter.accumulated = False
        return norm

    def save(self, adapter: Adapter) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Copies of the weights, and of the optimizer's moments, at the adapter's own rank."""
        bank = adapter.bank
        weights = {name: part.clone() for name, part in self._parts(adapter, bank.values).items()}
        moments = {
            f"{name}.{moment}": part.clone()
            for moment, rows in (("exp_avg", bank.exp_avg), ("exp_avg_sq", bank.exp_avg_sq))
            for name, part in self._parts(adapter, rows).items()
        }
        return _on_cpu(weights), _on_cpu(moments)

    def load(self, adapter: Adapter, weights: dict[str, Tensor], moments: dict[str, Tensor], steps: int) -> None:
        """What `save` gave, into any slot. Raises KeyError or RuntimeError where names or shapes differ."""
        bank = adapter.bank
        for name, part in self._parts(adapter, bank.values).items():
            part.copy_(weights[name])
        for moment, rows in (("exp_avg", bank.exp_avg), ("exp_avg_sq", bank.exp_avg_sq)):
            for name, part in self._parts(adapter, rows).items():
                part.copy_(moments[f"{name}.{moment}"])
        adapter.steps = steps

    def export(self, adapter: Adapter, directory: Path, base_model: str) -> tuple[str, ...]:
        """Writes the adapter in PEFT's format; its target modules."""
        names = [shape.name for shape in self.modules]
        facts = AdapterFacts(
            base_model=base_model,
            rank=adapter.settings.rank,
            alpha=adapter.settings.alpha,
            trained=tuple(name for name, trained in zip(names, adapter.trained, strict=True) if trained),
            others=tuple(name for name, trained in zip(names, adapter.trained, strict=True) if not trained),
        )
        write_adapter(directory, facts, self._parts(adapter, adapter.bank.values), self._stored)
        return target_modules(facts)

    def release(self, adapter: Adapter) -> None:
        """Frees the slot. The handle is dead from here on."""
        adapter.bank.release(adapter.slot)

    def _attempt(self, adapter: Adapter, batches: list[MicroBatch], normaliser: float | None) -> Measured | None:
        """All micro-batches in turn, forward only without a normaliser; None where memory did not suffice."""
        sums: Sums | None = None
        try:
            with self._routing.to(adapter.bank.views(adapter.slot)):
                for batch in batches:
                    part = (
                        self._stepper.evaluate(batch) if normaliser is None else self._stepper.train(batch, normaliser)
                    )
                    sums = part if sums is None else sums + part
                    self.after_pass()
        except (RuntimeError, MemoryError) as error:
            _memory_only(error)
            return None
        if sums is None:
            raise ValueError("a batch needs at least one row")
        return Measured(float(sums.loss), float(sums.correct), float(sums.weight))

    def _restore(self, adapter: Adapter, waiting: Tensor | None) -> None:
        grads = adapter.bank.grads[adapter.slot]
        if waiting is None:
            grads.zero_()
            adapter.accumulated = False
        else:
            grads.copy_(waiting)

    def _shrink(self, adapter: Adapter, batches: list[MicroBatch]) -> None:
        """Halves this adapter's token budget and nobody else's: long rows of one job change nothing for another."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if all(len(batch.input_ids) == 1 for batch in batches):
            raise OutOfMemory
        adapter.token_budget //= 2
        log.warning("out of memory: token budget of one adapter is now %d", adapter.token_budget)

    def _numbers(self, adapter: Adapter) -> list[int]:
        return [number for number, trained in enumerate(adapter.trained) if trained]

    def _parts(self, adapter: Adapter, rows: Tensor) -> dict[str, Tensor]:
        """The slot's part of `rows` by name, without the padding of its rank class."""
        rank = adapter.settings.rank
        parts: dict[str, Tensor] = {}
        for number in self._numbers(adapter):
            left, right = adapter.bank.pair(rows, adapter.slot, number)
            name = self.modules[number].name
            parts[f"{name}.A"], parts[f"{name}.B"] = left[:, :rank], right[:rank]
        return parts


def _memory_only(error: Exception) -> Exception:
    """The error again if it means that memory ran out; raises it otherwise."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        return error
    raise error


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
