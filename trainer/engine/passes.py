"""Passes over the base for many adapters at once: plans them, runs them, and says what came of each adapter's work.

Owns what a failure costs and whom: too little memory shrinks the passes and costs nobody, and any other error in a
shared pass has every adapter's work done again by itself, so that it reaches the one it belongs to and no other.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from trainer.engine.adapter import Adapter, Measured, NonFinite, Outcome, OutOfMemory, Preference, Work
from trainer.engine.lowrank import Group, Layout, Unroutable
from trainer.engine.objectives import Sums
from trainer.engine.plan import Demand, MicroBatch, Row, cut, padded_tokens, plan
from trainer.engine.step import Stepper

log = logging.getLogger("trainer.engine")

Waiting = list[tuple[Adapter, Tensor | None]]
"""Gradients that waited before a call."""


class Passes:
    """Runs work through one model."""

    def __init__(self, stepper: Stepper, shared_budget: int, packs: bool) -> None:
        """`packs` says whether the base keeps the examples of a packed row apart."""
        self._stepper = stepper
        self._shared_budget, self._packs = shared_budget, packs
        self._shares = True
        self.after_pass: Callable[[], None] = lambda: None

    def run(self, works: Sequence[Work], train: bool) -> list[Outcome]:
        """One outcome for each work, in order; each work is another adapter's.

        Where training fails, an adapter's gradients are as before the call; where its loss is not finite, gone.
        Raises torch.AcceleratorError alone: nothing on the device can be trusted after it.
        """
        if not self._shares and len(works) > 1:
            return [outcome for work in works for outcome in self.run([work], train)]
        waiting: Waiting = [(work.adapter, _waiting(work.adapter)) for work in works] if train else []
        try:
            measured = self._until_it_fits(works, waiting, train)
        except torch.AcceleratorError:
            raise
        except Exception as error:
            _restore(waiting)
            if isinstance(error, Unroutable) and self._shares:
                self._shares = self._stepper.joined = False
            elif len(works) == 1:
                return [error]
            return [outcome for work in works for outcome in self.run([work], train)]
        return [_checked(work.adapter, found, train) for work, found in zip(works, measured, strict=True)]

    def _until_it_fits(self, works: Sequence[Work], waiting: Waiting, train: bool) -> list[Measured]:
        while True:
            measured = self._attempt(works, train)
            if measured is not None:
                return measured
            _restore(waiting)

    def _attempt(self, works: Sequence[Work], train: bool) -> list[Measured] | None:
        """All passes in turn; None where memory did not suffice and smaller ones may do."""
        demands = [self._demand(work, train) for work in works]
        sums = [_nothing_yet(work) for work in works]
        for batch in plan(demands, self._shared_budget):
            adapters = [works[share.demand].adapter for share in batch.shares]
            try:
                found = (self._stepper.train if train else self._stepper.evaluate)(batch, _layout(batch, adapters))
            except (RuntimeError, MemoryError) as error:
                _shrink(adapters, batch, memory_only(error))
                return None
            start = 0
            for share in batch.shares:
                sums[share.demand] += _measured(found, slice(start, start + share.rows))
                start += share.rows
            self.after_pass()
        return sums

    def logits(self, adapter: Adapter, row: Row, blur: bool) -> Tensor:
        """Those of the one token that is labelled in the row. Raises whatever goes wrong."""
        demand = Demand([row], 1.0, adapter.token_budget, (adapter.bank.rank, adapter.slot))
        (batch,) = plan([demand], self._shared_budget)
        return self._stepper.logits(batch, _layout(batch, [adapter]), blur)[0, 0]

    def pieces(self, work: Work, token_budget: int) -> list[Work]:
        """Parts of a whole batch or file that go into one pass each."""
        demand = self._demand(work, train=False)
        return [replace(work, rows=part) for part in cut(demand.rows, token_budget, demand.unit, demand.copies)]

    def cost(self, work: Work, token_budget: int) -> int:
        """Padded tokens, those over the base alone included."""
        demand = self._demand(work, train=False)
        parts = cut(demand.rows, token_budget, demand.unit, demand.copies)
        return sum(padded_tokens(part, demand.copies) for part in parts)

    def _demand(self, work: Work, train: bool) -> Demand:
        adapter, rows = work.adapter, work.rows
        if not self._packs:
            rows = [example for row in rows for example in row.examples()]
        beta = work.objective.beta if isinstance(work.objective, Preference) else None
        order = (adapter.bank.rank, adapter.slot)
        return Demand(rows, work.normaliser, adapter.token_budget, order, beta, work.compared and not train)


def memory_only(error: Exception) -> Exception:
    """The error again if it means that memory ran out; raises it otherwise."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        return error
    raise error


def _layout(batch: MicroBatch, adapters: Sequence[Adapter]) -> Layout:
    """Runs of neighbouring slots of one bank with equally many rows become one group."""
    groups: list[Group] = []
    first, start, stop = 0, 0, 0
    for number, share in enumerate(batch.shares):
        stop += share.rows
        adapter, last = adapters[number], number + 1 == len(adapters)
        if not last:
            after = adapters[number + 1]
            if (after.bank, after.slot, batch.shares[number + 1].rows) == (adapter.bank, adapter.slot + 1, share.rows):
                continue
        span = adapter.bank.span(adapters[first].slot, number + 1 - first)
        groups.append(Group(span, start, stop))
        first, start = number + 1, stop
    return Layout(tuple(groups), *batch.input_ids.shape, jobs=len(adapters), adapted=stop)


def _nothing_yet(work: Work) -> Measured:
    paired = isinstance(work.objective, Preference)
    rows = work.rows[::2] if paired else work.rows
    weight = sum(row.labelled for row in rows)
    return Measured(0.0, len(rows) if paired else weight, 0.0, weight)


def _measured(found: Sums, rows: slice) -> Measured:
    """Of a pass, what concerns one work."""
    loss, correct, divergence, margin, won = (math.fsum(values[rows]) for values in vars(found).values())
    return Measured(loss, 0.0, correct, 0.0, divergence, margin, won)


def _waiting(adapter: Adapter) -> Tensor | None:
    return adapter.bank.grads[adapter.slot].clone() if adapter.accumulated else None


def _restore(waiting: Waiting) -> None:
    for adapter, before in waiting:
        grads = adapter.bank.grads[adapter.slot]
        if before is None:
            grads.zero_()
        else:
            grads.copy_(before)


def _checked(adapter: Adapter, measured: Measured, train: bool) -> Outcome:
    if not train:
        return measured
    adapter.accumulated = math.isfinite(measured.loss)
    if not adapter.accumulated:
        adapter.bank.grads[adapter.slot].zero_()
        return NonFinite()
    return measured


def _shrink(adapters: Sequence[Adapter], batch: MicroBatch, error: Exception) -> None:
    """Halves the token budgets of the pass's own adapters: long rows of one job change nothing for others."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if not batch.divisible:
        raise OutOfMemory from error
    for adapter in adapters:
        adapter.token_budget = min(adapter.token_budget, batch.input_ids.numel()) // 2
    log.warning("out of memory: token budget of %d adapters is now at most %d", len(adapters), adapters[0].token_budget)
