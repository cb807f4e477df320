"""A slot's optimizer step against torch's own AdamW and clipping, with neighbours that take other steps or none."""

import pytest
import torch

from trainer.engine.optimizer import AdamParams, adamw_step, gradient_norms
from trainer.engine.slots import ModuleShape, SlotBank

SHAPES = (ModuleShape("one", 24, 40), ModuleShape("two", 40, 24))
STEPS = 25
SETTINGS = (
    AdamParams(1e-2, weight_decay=0.1, max_grad_norm=1.0),
    AdamParams(3e-3, max_grad_norm=1e-3, beta2=0.95),
    AdamParams(1e-3, weight_decay=0.01),
)


def bank_of(slots: int) -> SlotBank:
    bank = SlotBank(8, SHAPES, torch.device("cpu"))
    for _ in range(slots):
        bank.allocate(1.0, (True, True))
    return bank


def test_steps_and_clips_as_torch_does_in_each_slot_by_itself() -> None:
    bank, random = bank_of(len(SETTINGS) + 1), torch.Generator().manual_seed(1)
    bank.values.normal_(generator=random)
    idle = bank.values[-1].clone()
    weights = [torch.nn.Parameter(bank.values[slot].clone()) for slot in range(len(SETTINGS))]
    theirs = [
        torch.optim.AdamW(
            [weight], lr=params.learning_rate, weight_decay=params.weight_decay, betas=(0.9, params.beta2)
        )
        for weight, params in zip(weights, SETTINGS, strict=True)
    ]
    for step in range(STEPS):
        for slot, (weight, params) in enumerate(zip(weights, SETTINGS, strict=True)):
            weight.grad = torch.randn(weight.shape, generator=random) * 10.0 ** (slot - step % 5)
            bank.grads[slot] = weight.grad
            (norm,) = gradient_norms([(bank, slot)])
            assert norm == pytest.approx(
                torch.nn.utils.clip_grad_norm_([weight], params.max_grad_norm).item(), rel=1e-6
            )
            theirs[slot].step()
            adamw_step(bank, slot, step, norm, params)
            assert not bank.grads[slot].any()
    for slot, weight in enumerate(weights):
        assert torch.allclose(bank.values[slot], weight, rtol=1e-6, atol=1e-6)
    assert torch.equal(bank.values[-1], idle)
