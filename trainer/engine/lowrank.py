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
    """Whose rows are whose in the pass in progress. Together the groups cover all rows."""

    groups: tuple[Group, ...]
    rows: int
    width: int
    jobs: int

    def parts(self, tokens: Tensor, shape: torch.Size) -> list[Tensor]:
        """For each group, [slots, tokens of each, features] of contiguous `tokens`, in shape [..., features]."""
        if self.jobs > 1 and shape[:-1] != (self.rows, self.width):
            raise Unroutable
        if len(self.groups) == 1:
            return [tokens.view(self.jobs, -1, shape[-1])]
        return [tokens[group.start : group.stop].view(group.span.count, -1, shape[-1]) for group in self.groups]


class LowRankLinear(torch.autograd.Function):
    """`base(x)` plus, for each row, the low-rank update of the row's own adapter."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, base: nn.Linear, number: int, layout: Layout) -> Tensor:
        """`anchor` requires a gradient, so that one is asked for where `x`, out of the frozen base, does not."""
        result = base(x)
        x = x.contiguous()
        downs: list[Tensor] = []
        for group, tokens, out in zip(
            layout.groups, layout.parts(x, x.shape), layout.parts(result, result.shape), strict=True
        ):
            module = group.span.modules[number]
            if module is None:
                continue
            down = torch.bmm(tokens, module.a.to(x.dtype).mT).mul_(group.span.scale)
            out.baddbmm_(down, module.b.to(x.dtype))
            downs.append(down)
        ctx.save_for_backward(x, *downs)
        ctx.base, ctx.number, ctx.layout = base, number, layout
        return result

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, upper: Tensor
    ) -> tuple[Tensor | None, None, None, None, None]:
        """Adds to the slots' gradients; returns that of `x` where somebody before this layer wants it."""
        upper = upper.contiguous()
        x, *downs = ctx.saved_tensors
        layout: Layout = ctx.layout
        lower = upper @ ctx.base.weight if ctx.needs_input_grad[0] else None
        lowers = layout.parts(lower, x.shape) if lower is not None else [None] * len(layout.groups)
        parts = zip(layout.groups, layout.parts(x, x.shape), layout.parts(upper, upper.shape), lowers, strict=True)
        for group, tokens, up, low in parts:
            module = group.span.modules[ctx.number]
            if module is None:
                continue
            down = downs.pop(0)
            _accumulate(module.grad_b, down.mT, up)
            through = torch.bmm(up, module.b.to(up.dtype).mT).mul_(group.span.scale)
            _accumulate(module.grad_a, through.mT, tokens)
            if low is not None:
                low.baddbmm_(through, module.a.to(up.dtype))
        return lower, None, None, None, None


def _accumulate(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Masters' gradients are float32 also where products are not."""
    if total.dtype == left.dtype:
        total.baddbmm_(left, right)
    else:
        total.add_(torch.bmm(left, right))
