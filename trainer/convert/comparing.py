"""What the base predicts with an adapter on it, and how far two of them are apart.

The adapter is added from outside by its own formula, so that what is compared has gone through no library.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trainer.convert.plain import Plain

TOLERANCE = 1e-3
"""Of what an adapter changes, how much its conversion may change that."""
LEAST_EFFECT = 1e-3
"""An adapter that changes less of the logits than this is compared with this."""
ROWS, TOKENS = 2, 32


def probe(base: PreTrainedModel) -> Tensor:
    """Token ids of every part of the vocabulary, always the same."""
    vocabulary = len(base.get_input_embeddings().weight)  # pyright: ignore[reportArgumentType]
    return torch.randint(vocabulary, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model: Any, tokens: Tensor) -> Tensor:
    return model(input_ids=tokens, use_cache=False).logits.float()


def deviation(wanted: Tensor, found: Tensor, bare: Tensor) -> float:
    """Relative to what the adapter changes of the bare base's logits. NaN compares with nothing and so is too much."""
    effect = max(float((wanted - bare).norm()), LEAST_EFFECT * float(wanted.norm()))
    return float((found - wanted).norm()) / effect


@contextmanager
def applied(modules: Mapping[str, nn.Module], plain: Plain) -> Iterator[None]:
    """`modules` are the base's own layers by name, whatever stands before them."""
    scale = plain.alpha / plain.rank
    hooks = [
        modules[name].register_forward_hook(_added(down.float(), up.float(), scale))
        for name, (down, up) in plain.pairs.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _added(down: Tensor, up: Tensor, scale: float) -> Any:
    def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + (scale * (inputs[0].float() @ down.T @ up.T)).to(output.dtype)

    return add
