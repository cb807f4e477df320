"""One pass of a micro-batch over the base: what came of each row and, in training, gradients into the jobs' slots.

Owns the call of the model. Whose rows are whose is the routing's, what a batch holds is the plan's, what it is for the
objectives'.
"""

from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trainer.engine.lowrank import Layout
from trainer.engine.objectives import Pairs, Sums, Tokens, sums_of, token_losses
from trainer.engine.plan import MicroBatch
from trainer.engine.wrap import Routing, blurred


class Stepper:
    """Runs micro-batches through one model."""

    def __init__(self, model: PreTrainedModel, routing: Routing) -> None:
        self._model, self._routing = model, routing
        self.device = model.device
        self.joined = True
        """Whether rows over the base alone share the pass with those they are compared with."""

    def train(self, batch: MicroBatch, layout: Layout) -> Sums:
        """Adds the gradient of each job's loss sum over its normaliser to the job's slot."""
        return self._run(batch, layout, backward=True)

    @torch.no_grad()
    def evaluate(self, batch: MicroBatch, layout: Layout) -> Sums:
        return self._run(batch, layout, backward=False)

    @torch.no_grad()
    def logits(self, batch: MicroBatch, layout: Layout, blur: bool) -> Tensor:
        """Those of each row's labelled tokens, in a pass that compares nothing with the base."""
        blurring = blurred(self._model) if blur else nullcontext()
        with blurring, self._routing.to(layout, batch.positions.to(self.device)):
            return self._logits(batch, slice(layout.rows))

    def _run(self, batch: MicroBatch, layout: Layout, backward: bool) -> Sums:
        targets, weights, factors = (tensor.to(self.device) for tensor in (batch.targets, batch.weights, batch.factors))
        reference = batch.reference.to(self.device) if batch.reference is not None else None
        own, base_logits = slice(layout.rows), None
        if reference is not None and not self.joined:
            own = slice(layout.adapted)
            base_logits = self._base_logits(batch, slice(layout.adapted, None))
            layout = replace(layout, rows=layout.adapted)
        with self._routing.to(layout, batch.positions[own].to(self.device)):
            logits = self._logits(batch, own)
            if layout.referenced:
                logits, base_logits = logits[: layout.adapted], logits[layout.adapted :].detach()
            losses = token_losses(logits, targets)
            tokens = Tokens(logits.detach(), losses.detach(), targets, weights, base_logits)
            pairs = Pairs(tokens, reference) if reference is not None and len(reference.preferred) else None
            if backward:
                # Each row's share is seeded by itself: what is not finite in one job's rows stays in them.
                losses.backward(factors if pairs is None else pairs.seed(factors))
        return sums_of(tokens, reference, pairs)

    @torch.no_grad()
    def _base_logits(self, batch: MicroBatch, rows: slice) -> Tensor:
        height, width = batch.input_ids[rows].shape
        with self._routing.to(Layout((), height, width, jobs=0, adapted=height), batch.positions[rows].to(self.device)):
            return self._logits(batch, rows)

    def _logits(self, batch: MicroBatch, rows: slice) -> Tensor:
        return self._model(
            input_ids=batch.input_ids[rows].to(self.device),
            position_ids=batch.position_ids[rows].to(self.device),
            use_cache=False,
        ).logits.float()
