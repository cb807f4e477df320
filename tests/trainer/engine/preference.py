"""Pairs to prefer, and what plain PEFT makes of them: DPO by hand, the base is the model without its adapter."""

import numpy as np
import torch
from peft import PeftModel
from torch.nn.functional import logsigmoid

from trainer.engine.plan import Row


def pairs(seed: int, count: int, longest: int = 40) -> list[Row]:
    """Rows 2i and 2i + 1: one prompt, two answers of different lengths, only the answers labelled."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        prompt = random.integers(4, 384, int(random.integers(3, longest // 2)))
        for _ in range(2):
            answer = random.integers(4, 384, int(random.integers(2, longest // 2)))
            weights = np.concatenate((np.zeros(len(prompt)), np.ones(len(answer)))).astype(np.float32)
            made.append(Row(np.concatenate((prompt, answer)).astype(np.int32), weights))
    return made


def even_pairs(seed: int, count: int = 1, length: int = 30) -> list[Row]:
    """Pairs of one shape, whatever the seed."""
    random = np.random.default_rng(seed)
    weights = np.ones(length, dtype=np.float32)
    weights[: length // 2] = 0
    return [Row(random.integers(4, 384, length).astype(np.int32), weights) for _ in range(2 * count)]


def log_probabilities(model: torch.nn.Module, row: Row) -> torch.Tensor:
    """Of a row's labelled tokens, unpadded and alone."""
    ids = torch.from_numpy(row.input_ids).long()[None]
    predicted = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    return predicted.gather(1, ids[0, 1:, None])[:, 0] * torch.from_numpy(row.weights)[1:]


def dpo_margins(model: PeftModel, rows: list[Row], beta: float) -> torch.Tensor:
    """Of each pair: beta times the difference of the two log-ratios."""
    gains = []
    for row in rows:
        with torch.no_grad(), model.disable_adapter():
            base = log_probabilities(model, row)
        gains.append((log_probabilities(model, row) - base).sum())
    return beta * torch.stack([won - lost for won, lost in zip(gains[::2], gains[1::2], strict=True)])


def dpo_loss(model: PeftModel, rows: list[Row], beta: float) -> torch.Tensor:
    """Summed over pairs."""
    return -logsigmoid(dpo_margins(model, rows, beta)).sum()
