"""Wraps the base model's own linear layers so that a step can add one slot's adapter to them.

Owns which modules are wrapped, by PEFT's rules, and the routing: whose adapter the step in progress belongs to. The
routing is plain state of the wrapped modules for the whole step: recomputed activations see it as the first pass did.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trainer.engine.slots import ModuleShape, SlotViews


class UnknownTarget(Exception):
    """A job names a module that this base does not have."""


class Routing:
    """The slot that the step in progress runs with; without one the base model is as it was."""

    def __init__(self) -> None:
        self.active: SlotViews | None = None

    @contextmanager
    def to(self, views: SlotViews) -> Iterator[None]:
        """Lasts over forward and backward: a checkpointed layer is run again inside backward."""
        self.active = views
        try:
            yield
        finally:
            self.active = None


class RoutedLinear(nn.Module):
    """A frozen linear layer plus the active slot's low-rank update of it."""

    def __init__(self, base: nn.Linear, number: int, routing: Routing) -> None:
        super().__init__()
        self.base = base
        self._number = number
        self._routing = routing

    def __getattr__(self, name: str) -> Any:
        """Model code that asks a linear layer for its weight, bias or sizes gets the base layer's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def forward(self, x: Tensor) -> Tensor:
        result = self.base(x)
        active = self._routing.active
        pair = active.pairs[self._number] if active is not None else None
        if active is None or pair is None:
            return result
        left, right = pair
        down = x.flatten(0, -2) @ left.to(x.dtype)
        summed = torch.addmm(result.flatten(0, -2), down, right.to(x.dtype), alpha=active.scale)
        return summed.view_as(result)


def wrap_linears(model: PreTrainedModel, routing: Routing) -> tuple[ModuleShape, ...]:
    """Replaces every nn.Linear but the output embedding, as PEFT's "all-linear" does; their shapes in module order."""
    head = model.get_output_embeddings()
    linears = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head]
    if not linears:
        raise ValueError(f"{type(model).__name__} has no linear layer that an adapter could be added to.")
    for number, (name, linear) in enumerate(linears):
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, RoutedLinear(linear, number, routing))
    return tuple(ModuleShape(name, linear.in_features, linear.out_features) for name, linear in linears)


def trained_modules(targets: str | tuple[str, ...], modules: tuple[ModuleShape, ...]) -> tuple[bool, ...]:
    """For each wrapped module, whether `targets` means it: its whole name, or the end of it after a dot, as in PEFT."""
    if isinstance(targets, str):
        return (True,) * len(modules)
    for target in targets:
        if not any(_matches(shape.name, target) for shape in modules):
            raise UnknownTarget(target)
    return tuple(any(_matches(shape.name, target) for target in targets) for shape in modules)


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def recompute_layers(model: PreTrainedModel) -> None:
    """Trades a second forward pass for the memory of a layer's activations."""
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            # The layer asks its own flag; its children stay in evaluation mode, so no dropout is switched on.
            module.training = True


def freeze(model: PreTrainedModel) -> None:
    """No weight of the base ever changes or holds a gradient."""
    model.requires_grad_(False)
    model.eval()
