"""Families of base models: a mixed step of unlike jobs gives each what PEFT gives it alone, and what it exports loads.

Models are random and tiny, of the family's own code: fused projections, biases, norms of queries, soft caps, windows.
"""

from pathlib import Path

import pytest
import torch
import transformers
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.trainer.engine.conftest import labelled, only, rows, settings, train_together
from tests.trainer.engine.preference import dpo_loss, pairs
from tests.trainer.engine.test_engine_packing import packs
from tests.trainer.engine.test_engine_parity import SHAPE, TOLERANCE, gradient_difference, peft_losses, peft_model
from trainer.engine.adapter import Adapter, Preference, Work
from trainer.engine.base import load_engine
from trainer.engine.engine import Engine
from trainer.engine.wrap import recompute_layers

WINDOW = 16
FAMILIES = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {"head_dim": 16},
    "Mistral": {"sliding_window": WINDOW},
    "Gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": WINDOW, "final_logit_softcapping": 5.0},
    "Gemma3Text": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": WINDOW},
    "Phi3": {},
}
RANKS = (4, 12, 16)
BETA = 0.1


@pytest.fixture(scope="module", params=FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = getattr(transformers, f"{request.param}Config")(**{**SHAPE, **FAMILIES[request.param]})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        # Families start norms and biases at one and zero: at other values a mistake in them would show.
        for weight in model.parameters():
            if weight.ndim == 1:
                weight += 0.1 * torch.randn_like(weight)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def engine(base: Path) -> Engine:
    return load_engine(str(base), "cpu", threads=1)


@pytest.fixture
def adapters(engine: Engine) -> list[Adapter]:
    """Of different ranks, trained together for a few steps."""
    made = [engine.create_adapter(settings(rank, seed=rank)) for rank in RANKS]
    for step in range(3):
        train_together(engine, [(adapter, rows(step + 10 * n, 1 + n), 5e-3) for n, adapter in enumerate(made)])
    return made


@pytest.mark.parametrize("recompute", [False, True])
def test_a_mixed_step_is_that_of_peft_alone(
    base: Path, engine: Engine, adapters: list[Adapter], tmp_path: Path, recompute: bool
) -> None:
    if recompute:
        recompute_layers(engine._passes._stepper._model)
    plain, packed, preferred = rows(50, 2), packs(51, (2, 1)), pairs(52, 2)
    works = [
        Work(adapters[0], plain, labelled(plain)),
        Work(adapters[1], packed, labelled(packed)),
        Work(adapters[2], preferred, 2.0, Preference(BETA)),
    ]
    outcomes = engine.forward_backward(works)
    for number, (work, outcome) in enumerate(zip(works, outcomes, strict=True)):
        engine.export(work.adapter, tmp_path / str(number), "tiny")
        model = peft_model(base, tmp_path / str(number)).eval()
        examples = [example for row in work.rows for example in row.examples()]
        paired = isinstance(work.objective, Preference)
        expected = dpo_loss(model, examples, BETA) if paired else peft_losses(model, examples)
        (expected / work.normaliser).backward()
        assert only([outcome]).loss == pytest.approx(expected.item(), rel=TOLERANCE)
        assert gradient_difference(engine, work.adapter, model) < TOLERANCE


def test_an_exported_adapter_gives_the_same_logits_in_plain_peft(
    base: Path, engine: Engine, adapters: list[Adapter], tmp_path: Path
) -> None:
    for adapter in adapters:
        engine.export(adapter, tmp_path / str(adapter.settings.rank), "tiny")
        model = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base), str(tmp_path / str(adapter.settings.rank))
        )
        batch = rows(60, 3)
        with torch.no_grad():
            theirs = float(peft_losses(model, batch))
            with model.disable_adapter():
                untrained = float(peft_losses(model, batch))
        measured = only(engine.evaluate([Work(adapter, batch)]))
        assert measured.loss == pytest.approx(theirs, rel=TOLERANCE)
        assert abs(theirs - untrained) > 100 * TOLERANCE * theirs
