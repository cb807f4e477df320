"""Wraps the base model's own layers: linear ones add each row's adapter, the last one sees labelled tokens only.

Owns which modules are wrapped, by PEFT's rules, and the routing: whose rows are whose in the pass in progress. The
routing is plain state of the wrapped modules for the whole pass: recomputed activations see it as the first time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trainer.engine.lowrank import FrozenLinear, Layout, LowRankLinear
from trainer.engine.slots import ModuleShape

BLUR = 2.0**-8
"""The relative distance of two neighbours in bfloat16, at the most half of it."""


class UnknownTarget(Exception):
    """A job names a module that this base does not have."""


class Routing:
    """The pass in progress; without one the base model is as it was."""

    def __init__(self, device: torch.device) -> None:
        self.layout: Layout | None = None
        self.positions = torch.empty(0)
        self.anchor = torch.zeros((), device=device, requires_grad=True)

    @contextmanager
    def to(self, layout: Layout, positions: Tensor) -> Iterator[None]:
        """Lasts over forward and backward: a checkpointed layer is run again inside backward."""
        self.layout, self.positions = layout, positions
        try:
            yield
        finally:
            self.layout = None


class Routed(nn.Module):
    """A layer of the base in whose place this stands."""

    def __init__(self, base: nn.Module, routing: Routing) -> None:
        super().__init__()
        self.base = base
        self._routing = routing

    def __getattr__(self, name: str) -> Any:
        """Model code that asks the layer for its weight, bias or sizes gets the base layer's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)


class RoutedLinear(Routed):
    """A frozen linear layer plus the active slots' low-rank updates of it."""

    def __init__(self, base: nn.Linear, number: int, routing: Routing) -> None:
        super().__init__(base, routing)
        self._number = number

    def forward(self, x: Tensor) -> Tensor:
        layout = self._routing.layout
        if layout is None or not layout.groups:
            return self.base(x)
        return LowRankLinear.apply(x, self._routing.anchor, self.base, self._number, layout)


class RoutedHead(Routed):
    """The output embedding, for the wanted positions of each row alone: the other logits would only take memory."""

    def forward(self, hidden: Tensor) -> Tensor:
        layout = self._routing.layout
        if layout is None:
            return self.base(hidden)
        hidden = hidden.gather(1, self._routing.positions[..., None].expand(-1, -1, hidden.shape[-1]))
        if layout.referenced and isinstance(self.base, nn.Linear):
            return FrozenLinear.apply(hidden, self.base, layout)
        return self.base(hidden)


def wrap_layers(model: PreTrainedModel, routing: Routing) -> tuple[ModuleShape, ...]:
    """Replaces the output embedding, and every other nn.Linear as PEFT's "all-linear" does; these' shapes in order."""
    head = model.get_output_embeddings()
    linears = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head]
    if head is None or not linears:
        raise ValueError(f"{type(model).__name__} has no linear layer that an adapter could be added to.")
    for number, (name, linear) in enumerate(linears):
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, RoutedLinear(linear, number, routing))
    model.set_output_embeddings(RoutedHead(head, routing))
    return tuple(ModuleShape(name, linear.in_features, linear.out_features) for name, linear in linears)


@contextmanager
def blurred(model: PreTrainedModel) -> Iterator[None]:
    """Whatever a module puts out moves by what bfloat16 cannot tell apart, the same way each time."""
    source = torch.Generator().manual_seed(0)

    def blur(module: nn.Module, _: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return output
        signs = torch.randint(0, 2, output.shape, generator=source).to(output) * 2 - 1
        return output + output * signs * BLUR

    handles = [module.register_forward_hook(blur) for module in model.modules() if module is not model]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
