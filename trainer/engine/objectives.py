"""What a pass is for: from the losses of tokens to those of jobs, and to what the gradient starts from.

Owns the objectives' arithmetic. Every number here is made from one job's own rows, so that what is not finite in one
stays there.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.engine.plan import Reference

TILE = 1 << 22
"""Probabilities that are compared at once: a vocabulary is large, and every position has one for each token."""


@dataclass(frozen=True)
class Sums:
    """Of each row, over its labelled tokens; a pair's stand at its preferred row."""

    loss: list[float]
    correct: list[float]
    divergence: list[float]
    margin: list[float]
    won: list[float]


@dataclass(frozen=True)
class Tokens:
    """A pass as the jobs see it, [rows, labels] each, and as the base alone does where it is asked for."""

    logits: Tensor
    losses: Tensor
    targets: Tensor
    weights: Tensor
    base_logits: Tensor | None


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)


class Pairs:
    """The pairs of a pass: DPO's loss (arXiv 2305.18290, equation 7) and its derivative by each token's loss."""

    def __init__(self, tokens: Tokens, reference: Reference) -> None:
        assert tokens.base_logits is not None
        self._preferred = reference.preferred
        self._betas = reference.betas
        base_losses = token_losses(tokens.base_logits, tokens.targets[reference.rows])
        # Differences first: they are small, and the sums of log-probabilities are not.
        gains = tokens.losses.new_zeros(len(tokens.losses))
        differences = (base_losses - tokens.losses[reference.rows]) * tokens.weights[reference.rows]
        gains[reference.rows] = differences.sum(1)
        self.margins = self._betas * (gains[self._preferred] - gains[self._preferred + 1])

    def seed(self, factors: Tensor) -> Tensor:
        """What backward starts from, given each token's weight in its job's loss."""
        slopes = (self._betas * torch.sigmoid(-self.margins))[:, None]
        seeds = factors.clone()
        seeds[self._preferred] *= slopes
        seeds[self._preferred + 1] *= -slopes
        return seeds

    def enter(self, loss: Tensor, correct: Tensor, margin: Tensor, won: Tensor) -> None:
        """Puts the pairs' sums in place of the rows'."""
        loss[self._preferred], loss[self._preferred + 1] = F.softplus(-self.margins), 0.0
        correct[self._preferred + 1] = 0.0
        margin[self._preferred] = self.margins
        won[self._preferred] = (self.margins > 0).to(won.dtype)


@torch.no_grad()
def sums_of(tokens: Tokens, reference: Reference | None, pairs: Pairs | None) -> Sums:
    """Waits for the device once."""
    loss = (tokens.losses * tokens.weights).sum(1)
    correct = ((tokens.logits.argmax(-1) == tokens.targets) * tokens.weights).sum(1)
    if reference is None:
        nothing = [0.0] * len(loss)
        return Sums(*[*torch.stack((loss, correct)).tolist(), nothing, nothing, nothing])
    divergence, margin, won = loss.new_zeros(3, len(loss))
    if pairs is not None:
        pairs.enter(loss, correct, margin, won)
    if len(reference.compared):
        divergence[reference.compared] = _divergences(tokens, reference)
    return Sums(*torch.stack((loss, correct, divergence, margin, won)).tolist())


def _divergences(tokens: Tokens, reference: Reference) -> Tensor:
    """KL(base ‖ adapter) of each compared row, summed over its labelled tokens by weight."""
    assert tokens.base_logits is not None
    rows, twins = reference.compared, torch.searchsorted(reference.rows, reference.compared)
    labels, vocabulary = tokens.logits.shape[1:]
    total = tokens.logits.new_zeros(len(rows))
    step = max(1, TILE // (len(rows) * vocabulary))
    for start in range(0, labels, step):
        part = slice(start, start + step)
        own = tokens.logits[rows, part].log_softmax(-1)
        base = tokens.base_logits[twins, part].log_softmax(-1)
        total += (F.kl_div(own, base, reduction="none", log_target=True).sum(-1) * tokens.weights[rows, part]).sum(1)
    return total
