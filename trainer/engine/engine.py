"""The engine's internal interface: create_adapter, forward_backward, optim_step, save, load, export, release.

Owns the base model, the banks and the adapters in them. Knows nothing of jobs, files of examples or the agent: the job
runner is its first client, not its only one. Steps take many adapters at once and give each what it would get alone.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trainer.engine.adapter import Adapter, AdapterSettings, NonFinite, Outcome, OutOfMemory, Work
from trainer.engine.optimizer import AdamParams, adamw_step, gradient_norms
from trainer.engine.passes import Passes, memory_only
from trainer.engine.plan import Row
from trainer.engine.separation import separates_examples
from trainer.engine.slots import ModuleShape, SlotBank, initial_a, rank_class
from trainer.engine.step import Stepper
from trainer.engine.wrap import Routing, freeze, recompute_layers, trained_modules, wrap_layers
from trainer.export import AdapterFacts, AdapterInvalid, check_facts, target_modules, write_adapter


class TokensOutOfRange(Exception):
    """Rows hold a token or a position that the base has no embedding for."""


class Engine:
    """Many adapters over one frozen base model."""

    def __init__(
        self, model: PreTrainedModel, stored: torch.dtype, token_budget: int, shared_budget: int, recompute: bool
    ) -> None:
        """Passes have up to `token_budget` padded tokens; jobs share one up to `shared_budget`."""
        freeze(model)
        if recompute:
            recompute_layers(model)
        self._stored = stored
        self.token_budget, self.shared_budget = token_budget, shared_budget
        routing = Routing(model.device)
        self.modules: tuple[ModuleShape, ...] = wrap_layers(model, routing)
        self.vocabulary = len(model.get_input_embeddings().weight)  # pyright: ignore[reportArgumentType]
        stepper = Stepper(model, routing)
        self._passes = Passes(stepper, shared_budget, packs=separates_examples(stepper, self.vocabulary))
        self._device = model.device
        self._context: int | None = getattr(model.config, "max_position_embeddings", None)
        self._banks: dict[int, SlotBank] = {}

    def after_pass(self, call: Callable[[], None]) -> None:
        """Has it called after each pass over the model, so that work of many passes need not look like a hang."""
        self._passes.after_pass = call

    def check_rows(self, largest_token: int, longest: int) -> None:
        """Raises TokensOutOfRange. On an accelerator such a row would break the device for every other adapter."""
        if largest_token >= self.vocabulary or (self._context is not None and longest > self._context):
            raise TokensOutOfRange

    def create_adapter(self, settings: AdapterSettings) -> Adapter:
        """A new adapter that changes nothing yet: A random by its seed, B zero.

        Raises UnknownTarget, or Unservable where nobody could serve what it becomes.
        """
        trained = trained_modules(settings.targets, self.modules)
        check_facts(self._facts(settings, trained, base_model=""))
        size = rank_class(settings.rank)
        if size not in self._banks:
            self._banks[size] = SlotBank(size, self.modules, self._device)
        bank = self._banks[size]
        try:
            slot = bank.allocate(settings.alpha / settings.rank, trained)
        except (RuntimeError, MemoryError) as error:
            raise OutOfMemory from memory_only(error)
        adapter = Adapter(settings, bank, slot, trained, self.token_budget)
        for number in self._numbers(adapter):
            left, _ = bank.pair(bank.values, slot, number)
            left[:, : settings.rank] = initial_a(settings.seed, self.modules[number], settings.rank)
        return adapter

    def pieces(self, work: Work) -> list[Work]:
        """The work cut by the token budget: parts that each take one pass and add up to the whole. Pairs stay pairs."""
        return self._passes.pieces(work, self.token_budget)

    def cost(self, work: Work) -> int:
        """Padded tokens of the work's passes, rows over the base alone included."""
        return self._passes.cost(work, self.token_budget)

    def forward_backward(self, works: Sequence[Work]) -> list[Outcome]:
        """Adds the gradient of each work's weighted loss sum over its normaliser to what waits for its optim_step.

        An outcome is NonFinite where the loss is not, after which no gradient waits, OutOfMemory where even one row
        does not fit, or whatever else went wrong with that work alone.
        """
        return self._passes.run(works, train=True) if works else []

    def evaluate(self, works: Sequence[Work]) -> list[Outcome]:
        """The same sums without gradients."""
        return self._passes.run(works, train=False) if works else []

    def logits(self, adapter: Adapter, row: Row, blur: bool = False) -> Tensor:
        """Those of the one token that is labelled in the row, computed a little wrongly if `blur`.

        Raises whatever goes wrong.
        """
        return self._passes.logits(adapter, row, blur)

    def optim_step(self, steps: Sequence[tuple[Adapter, AdamParams]]) -> list[float | NonFinite]:
        """One AdamW step each with what waits: the gradient's norm before clipping, or NonFinite, changing nothing."""
        norms = gradient_norms([(adapter.bank, adapter.slot) for adapter, _ in steps])
        outcomes: list[float | NonFinite] = []
        for (adapter, params), norm in zip(steps, norms, strict=True):
            adapter.accumulated = False
            if math.isfinite(norm):
                adamw_step(adapter.bank, adapter.slot, adapter.steps, norm, params)
                adapter.steps += 1
                outcomes.append(norm)
            else:
                adapter.bank.grads[adapter.slot].zero_()
                outcomes.append(NonFinite())
        return outcomes

    def save(self, adapter: Adapter) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Copies of the weights, and of the optimizer's moments, at the adapter's own rank."""
        bank = adapter.bank
        moments = {
            f"{name}.{moment}": part.clone()
            for moment, rows in (("exp_avg", bank.exp_avg), ("exp_avg_sq", bank.exp_avg_sq))
            for name, part in self._parts(adapter, rows).items()
        }
        return self.weights(adapter), _on_cpu(moments)

    def load(self, adapter: Adapter, weights: dict[str, Tensor], moments: dict[str, Tensor], steps: int) -> None:
        """What `save` gave, into any slot. Raises KeyError or RuntimeError where names or shapes differ."""
        bank = adapter.bank
        for name, part in self._parts(adapter, bank.values).items():
            part.copy_(weights[name])
        for moment, rows in (("exp_avg", bank.exp_avg), ("exp_avg_sq", bank.exp_avg_sq)):
            for name, part in self._parts(adapter, rows).items():
                part.copy_(moments[f"{name}.{moment}"])
        adapter.steps = steps

    def begin_with(self, adapter: Adapter, weights: dict[str, Tensor]) -> None:
        """Gives an adapter other weights of the same shape. Raises AdapterInvalid, changing nothing."""
        parts = self._parts(adapter, adapter.bank.values)
        if {name: part.shape for name, part in parts.items()} != {name: part.shape for name, part in weights.items()}:
            raise AdapterInvalid("it trains other modules or has another rank")
        if not all(bool(weight.isfinite().all()) for weight in weights.values()):
            raise AdapterInvalid("it holds numbers that are not finite")
        for name, part in parts.items():
            part.copy_(weights[name])

    def weights(self, adapter: Adapter) -> dict[str, Tensor]:
        """A copy in host memory."""
        copies = {name: part.clone() for name, part in self._parts(adapter, adapter.bank.values).items()}
        return _on_cpu(copies)

    def export(self, adapter: Adapter, directory: Path, base_model: str) -> tuple[str, ...]:
        """Writes the adapter in PEFT's format; its target modules. Raises Unservable, and writes nothing then."""
        facts = self._facts(adapter.settings, adapter.trained, base_model)
        write_adapter(directory, facts, self._parts(adapter, adapter.bank.values), self._stored)
        return target_modules(facts)

    def release(self, adapter: Adapter) -> None:
        """Frees the slot. The handle is dead from here on."""
        adapter.bank.release(adapter.slot)

    def _facts(self, settings: AdapterSettings, trained: Sequence[bool], base_model: str) -> AdapterFacts:
        names = [(shape.name, one) for shape, one in zip(self.modules, trained, strict=True)]
        return AdapterFacts(
            base_model=base_model,
            rank=settings.rank,
            alpha=settings.alpha,
            trained=tuple(name for name, one in names if one),
            others=tuple(name for name, one in names if not one),
        )

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


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
