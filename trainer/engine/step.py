"""One pass of a micro-batch over the base: loss, token accuracy and, in training, gradients into the jobs' slots.

Owns the call of the model. Whose rows are whose is the routing's, what a batch holds is the plan's.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from trainer.engine.lowrank import Layout
from trainer.engine.plan import MicroBatch
from trainer.engine.wrap import Routing


@dataclass(frozen=True)
class Sums:
    """Of each row, over its labelled tokens."""

    loss: list[float]
    correct: list[float]


class Stepper:
    """Runs micro-batches through one model."""

    def __init__(self, model: PreTrainedModel, routing: Routing) -> None:
        self._model, self._routing = model, routing
        self.device = model.device

    def train(self, batch: MicroBatch, layout: Layout) -> Sums:
        """Adds the gradient of each job's weighted loss sum over its normaliser to the job's slot."""
        return self._run(batch, layout, backward=True)

    @torch.no_grad()
    def evaluate(self, batch: MicroBatch, layout: Layout) -> Sums:
        return self._run(batch, layout, backward=False)

    def _run(self, batch: MicroBatch, layout: Layout, backward: bool) -> Sums:
        rows, width = batch.input_ids.shape
        targets, weights = batch.targets.to(self.device), batch.weights.to(self.device)
        with self._routing.to(layout, batch.positions.to(self.device)):
            logits = self._model(
                input_ids=batch.input_ids.to(self.device),
                position_ids=torch.arange(width, device=self.device).expand(rows, width),
                use_cache=False,
            ).logits.float()
            losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
            if backward:
                # Each row's share is seeded by itself: what is not finite in one job's rows stays in them.
                losses.backward(batch.factors.to(self.device))
        with torch.no_grad():
            correct = ((logits.argmax(-1) == targets) * weights).sum(1)
            told = torch.stack(((losses * weights).sum(1), correct)).tolist()
        return Sums(*told)
