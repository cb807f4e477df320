"""Passes over the base for many adapters at once: plans them, runs them, and says what came of each adapter's work.

Owns what a failure costs and whom: too little memory shrinks the passes and costs nobody, and any other error in a
shared pass has every adapter's work done again by itself, so that it reaches the one it belongs to and no other.
"""

import logging
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trainer.engine.adapter import Adapter, Measured, NonFinite, Outcome, OutOfMemory, Work
from trainer.engine.lowrank import Group, Layout, Unroutable
from trainer.engine.plan import Demand, MicroBatch, plan
from trainer.engine.step import Stepper

log = logging.getLogger("trainer.engine")

Waiting = list[tuple[Adapter, Tensor | None]]
"""Gradients that waited before a call."""


class Passes:
    """Runs work through one model."""

    def __init__(self, stepper: Stepper, shared_budget: int) -> None:
        self._stepper = stepper
        self._shared_budget = shared_budget
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
            if len(works) == 1:
                return [error]
            self._shares = self._shares and not isinstance(error, Unroutable)
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
        demands = [
            Demand(work.rows, work.normaliser, work.adapter.token_budget, (work.adapter.bank.rank, work.adapter.slot))
            for work in works
        ]
        sums = [Measured(0.0, 0.0, sum(row.labelled for row in work.rows)) for work in works]
        for batch in plan(demands, self._shared_budget):
            adapters = [works[share.demand].adapter for share in batch.shares]
            try:
                found = (self._stepper.train if train else self._stepper.evaluate)(batch, _layout(batch, adapters))
            except (RuntimeError, MemoryError) as error:
                _shrink(adapters, batch, memory_only(error))
                return None
            start = 0
            for share in batch.shares:
                own = slice(start, start + share.rows)
                sums[share.demand] += Measured(math.fsum(found.loss[own]), math.fsum(found.correct[own]), 0.0)
                start += share.rows
            self.after_pass()
        return sums


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
    return Layout(tuple(groups), *batch.input_ids.shape, jobs=len(adapters))


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
    if len(batch.input_ids) == 1:
        raise OutOfMemory from error
    for adapter in adapters:
        adapter.token_budget = min(adapter.token_budget, batch.input_ids.numel()) // 2
    log.warning("out of memory: token budget of %d adapters is now at most %d", len(adapters), adapters[0].token_budget)
