"""One pass of a micro-batch over the base: loss, token accuracy and, in training, gradients into the active slot.

Owns the call of the model. Whose slot is active is the routing's, what a batch holds is the plan's.
"""

import inspect
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from trainer.engine.plan import MicroBatch


@dataclass(frozen=True)
class Sums:
    """Sums over labelled tokens, on the device until they are read: reading waits for the device."""

    loss: Tensor
    correct: Tensor
    weight: Tensor

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(self.loss + other.loss, self.correct + other.correct, self.weight + other.weight)


class Stepper:
    """Runs micro-batches through one model."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self.device = model.device
        self._partial_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    def train(self, batch: MicroBatch, normaliser: float) -> Sums:
        """Adds the gradient of the weighted loss sum divided by `normaliser` to the active slot."""
        sums = self._forward(batch)
        (sums.loss / normaliser).backward()
        return Sums(sums.loss.detach(), sums.correct, sums.weight)

    @torch.no_grad()
    def evaluate(self, batch: MicroBatch) -> Sums:
        return self._forward(batch)

    def _forward(self, batch: MicroBatch) -> Sums:
        batch = batch.to(self.device)
        keep = {"logits_to_keep": batch.positions} if self._partial_logits else {}
        output = self._model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, **keep)
        logits = output.logits if self._partial_logits else output.logits[:, batch.positions]
        # Only labelled tokens reach the loss: nothing of a padded or unlabelled position can, not even a NaN.
        logits = logits.flatten(0, 1)[batch.labelled].float()
        losses = F.cross_entropy(logits, batch.targets, reduction="none")
        with torch.no_grad():
            correct = ((logits.argmax(-1) == batch.targets) * batch.weights).sum()
        return Sums((losses * batch.weights).sum(), correct, batch.weights.sum())
