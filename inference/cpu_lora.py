"""LoRA's products on CPUs, in place of those of vLLM's `PunicaWrapperCPU`; they come to the same bits.

vLLM copies an adapter's weights once for each token, at the largest rank that any adapter may have, and only then
multiplies: over a small base that takes longer than all else in a step. Here the rows of one adapter are multiplied
with one view of its weights, as many ranks as it has; lone rows of several adapters, as decoding has them, in one
batch. The base's rows stay as they are: vLLM marks them with slot -1, which torch takes for the last slot's adapter.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

Stacked = Sequence[torch.Tensor]
"""One tensor for each slice of a layer's output: [slots, 1, most ranks, in] of A, [slots, 1, out, most ranks] of B."""


@dataclass(frozen=True)
class Span:
    """Rows of one adapter that follow each other."""

    start: int
    stop: int
    slot: int
    rank: int


@dataclass(frozen=True)
class Lone:
    """Rows whose neighbours are of other adapters; `rank` is the largest among them."""

    rows: torch.Tensor
    slots: torch.Tensor
    rank: int


@dataclass(frozen=True)
class Plan:
    """Which rows of a step meet which slots; all others are the base's."""

    spans: Sequence[Span] = ()
    lone: Lone | None = None


def planned(slots: Sequence[int], ranks: Mapping[int, int]) -> Plan:
    """`slots` is each row's, negative for the base; `ranks` each slot's."""
    spans = list(_spans(slots, ranks))
    single = [span for span in spans if span.stop - span.start == 1]
    if len(single) < 2:
        return Plan(spans)
    lone = Lone(
        torch.tensor([span.start for span in single]),
        torch.tensor([span.slot for span in single]),
        max(span.rank for span in single),
    )
    return Plan([span for span in spans if span.stop - span.start > 1], lone)


def _spans(slots: Sequence[int], ranks: Mapping[int, int]) -> Iterator[Span]:
    start = 0
    for slot, rows in groupby(slots):
        stop = start + sum(1 for _ in rows)
        if slot >= 0:
            yield Span(start, stop, slot, ranks[slot])
        start = stop


def add(plan: Plan, y: torch.Tensor, x: torch.Tensor, a: Stacked, b: Stacked, scale: float) -> None:
    """y [rows, out] += (x [rows, in] A^T) B^T x scale, by each row's slot; y is changed in place.

    A's product is in float32 and B's in y's type, as in vLLM.
    """
    for span in plan.spans:
        wide, offset = x[span.start : span.stop].float(), 0
        for first, second in zip(a, b, strict=True):
            shrunk = wide @ first[span.slot, 0, : span.rank].float().t() * scale
            weights = second[span.slot, 0, :, : span.rank].to(y.dtype)
            y[span.start : span.stop, offset : offset + len(weights)] += shrunk.to(y.dtype) @ weights.t()
            offset += len(weights)
    if plan.lone is not None:
        _add_lone(plan.lone, y, x, a, b, scale)


def _add_lone(lone: Lone, y: torch.Tensor, x: torch.Tensor, a: Stacked, b: Stacked, scale: float) -> None:
    wide = x[lone.rows].float().unsqueeze(2)
    added: list[torch.Tensor] = []
    for first, second in zip(a, b, strict=True):
        shrunk = torch.bmm(first[:, 0, : lone.rank].index_select(0, lone.slots).float(), wide) * scale
        weights = second[:, 0, :, : lone.rank].index_select(0, lone.slots).to(y.dtype)
        added.append(torch.bmm(weights, shrunk.to(y.dtype)).squeeze(2))
    whole = added[0] if len(added) == 1 else torch.cat(added, dim=1)
    y[lone.rows, : whole.shape[1]] += whole


def install() -> None:
    """Makes vLLM's layers use it; in the engine's process, before adapters are made room for."""
    from vllm.lora.model_manager import LoRAModelManager
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    wrapper: Any = PunicaWrapperCPU
    if hasattr(wrapper, "plan"):
        return
    update, activate = wrapper.update_metadata, LoRAModelManager.activate_adapter

    @functools.wraps(update)
    def update_metadata(self: Any, *args: Any, **options: Any) -> None:
        update(self, *args, **options)
        self.plan = planned(self.token_lora_indices.tolist(), self.ranks)

    def add_lora_linear(
        self: Any, y: torch.Tensor, x: torch.Tensor, a: Stacked, b: Stacked, scale: float, *_: Any, **__: Any
    ) -> None:
        add(self.plan, y, x, a, b, scale)

    @functools.wraps(activate)
    def activate_adapter(manager: Any, lora_id: int) -> bool:
        done = activate(manager, lora_id)
        if done:
            slot, rank = manager.lora_index_to_id.index(lora_id), _rank(manager, lora_id)
            for each in manager.punica_wrapper_mapping.values():
                if isinstance(each, wrapper):
                    each.ranks = {**each.ranks, slot: rank}
        return done

    def add_shrink(*_: Any, **__: Any) -> None:
        raise NotImplementedError("On CPUs the weights of adapters cannot be fully sharded.")

    wrapper.plan, wrapper.ranks = Plan(), {}
    wrapper.update_metadata, wrapper.add_lora_linear = update_metadata, add_lora_linear
    wrapper.add_shrink = add_shrink  # of fully sharded weights alone; it would take the base's rows for an adapter's
    LoRAModelManager.activate_adapter = activate_adapter  # type: ignore[method-assign]


def _rank(manager: Any, lora_id: int) -> int:
    """The largest of its layers'; those of a packed layer come as a list with None for what has no adapter."""
    layers = manager._registered_adapters[lora_id].loras.values()
    found = [layer.lora_a if isinstance(layer.lora_a, list) else [layer.lora_a] for layer in layers]
    return max((len(a) for each in found for a in each if a is not None), default=0)
