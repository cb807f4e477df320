"""The arithmetic of many adapters on one linear layer: a batched product per run of neighbouring slots.

Owns forward and backward of the layer with its updates. Gradients of the adapters are added to the slots by the
backward pass itself, which spares autograd a copy of every slot; those of the frozen layer are never made.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trainer.engine.slots import Span


class Unroutable(Exception):
    """A layer sees its tokens in another arrangement than the batch has them: jobs cannot share a pass of this base."""


@dataclass(frozen=True)
class Group:
    """Neighbouring slots with equally many rows each: rows `start` to `stop` of the batch, in the order of slots."""

    span: Span
    start: int
    stop: int


@dataclass(frozen=True)
class Layout:
    """Whose rows are whose in the pass in progress. The groups cover the first rows; what follows sees the base alone
    and has no gradient."""

    groups: tuple[Group, ...]
    rows: int
    width: int
    jobs: int
    adapted: int
    """Rows before those that see the base alone."""

    @property
    def referenced(self) -> bool:
        return self.adapted < self.rows

    def parts(self, tokens: Tensor, shape: torch.Size) -> list[Tensor]:
        """For each group, [slots, tokens of each, features] of contiguous `tokens`, in shape [..., features]."""
        if (self.jobs > 1 or self.referenced) and shape[:-1] != (self.rows, self.width):
            raise Unroutable
        if len(self.groups) == 1 and not self.referenced:
            return [tokens.view(self.jobs, -1, shape[-1])]
        return [tokens[group.start : group.stop].view(group.span.count, -1, shape[-1]) for group in self.groups]


class LowRankLinear(torch.autograd.Function):
    """`base(x)` plus, for each row, the low-rank update of the row's own adapter."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, base: nn.Linear, number: int, layout: Layout) -> Tensor:
        """`anchor` requires a gradient, so that one is asked for where `x`, out of the frozen base, does not."""
        result = base(x)
        x = x.contiguous()
        saved = [x]
        parts = zip(layout.groups, layout.parts(x, x.shape), layout.parts(result, result.shape), strict=True)
        for group, tokens, out in parts:
            module = group.span.modules[number]
            if module is None:
                continue
            # [slots, R, tokens]: few rows are several times faster than few columns.
            down = torch.bmm(module.a.to(x.dtype), tokens.mT).mul_(group.span.scale)
            out.baddbmm_(down.mT, module.b.to(x.dtype))
            saved.append(down)
        ctx.save_for_backward(*saved)
        ctx.of = base, number, layout
        return result

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, upper: Tensor
    ) -> tuple[Tensor | None, None, None, None, None]:
        """Adds to the slots' gradients; returns that of `x` where somebody before this layer wants it."""
        upper = upper.contiguous()
        x, *downs = ctx.saved_tensors
        base, number, layout = ctx.of
        lower, lowers = None, [None] * len(layout.groups)
        if ctx.needs_input_grad[0]:
            lower = _through(base, upper, layout)
            lowers = layout.parts(lower, x.shape)
        parts = zip(layout.groups, layout.parts(x, x.shape), layout.parts(upper, upper.shape), lowers, strict=True)
        for group, tokens, up, low in parts:
            module = group.span.modules[number]
            if module is None:
                continue
            # Not added to in the product itself: into the slots, which lie apart, that goes one by one.
            module.grad_b.add_(torch.bmm(downs.pop(0), up))
            through = torch.bmm(module.b.to(up.dtype), up.mT).mul_(group.span.scale)
            module.grad_a.add_(torch.bmm(through, tokens))
            if low is not None:
                low.baddbmm_(through.mT, module.a.to(up.dtype))
        return lower, None, None, None, None


class FrozenLinear(torch.autograd.Function):
    """`base(x)`, with no gradient where rows see the base alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, base: nn.Linear, layout: Layout) -> Tensor:
        ctx.base, ctx.layout = base, layout
        return base(x)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, upper: Tensor
    ) -> tuple[Tensor, None, None]:
        return _through(ctx.base, upper.contiguous(), ctx.layout), None, None


def _through(base: nn.Linear, upper: Tensor, layout: Layout) -> Tensor:
    """The gradient of what went into `base`: zero, at no cost, for rows that have none."""
    if not layout.referenced:
        return upper @ base.weight
    lower = upper.new_empty(*upper.shape[:-1], base.in_features)
    adapted, others = lower[: layout.adapted], lower[layout.adapted :]
    torch.mm(upper[: layout.adapted].flatten(0, -2), base.weight, out=adapted.flatten(0, -2))
    others.zero_()
    return lower
