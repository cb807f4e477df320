"""The canary told with a trained adapter: what transformers and PEFT predict with the delivered files."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from service.contracts.manifest import Canary
from tests.trainer.engine.conftest import rows, settings, train_step
from tests.trainer.engine.jobs import OVERFITTING, run, start, trained
from trainer.engine.canary import LIKELY, PROMPT_TOKENS, canary, prompt
from trainer.engine.engine import Engine
from trainer.protocol import CheckpointModelWritten, Line

TOLERANCE = 2e-3
"""The tiny base is stored in float32, and so are its adapters."""


def predicted(base: Path, adapter: Path, tokens: tuple[int, ...]) -> torch.Tensor:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(adapter))
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([tokens])).logits[0, -1], 0)


def check(found: Canary | None, base: Path, adapter: Path) -> None:
    assert found is not None
    reference = predicted(base, adapter, found.prompt)
    assert found.likely == tuple(reference.topk(LIKELY).indices.tolist())
    assert found.logprobs == pytest.approx(reference.topk(LIKELY).values.tolist(), abs=TOLERANCE)
    assert 0 < found.spread < 0.5


@pytest.mark.parametrize("options", [{}, OVERFITTING], ids=["the last step", "the best step"])
def test_canary_is_of_the_delivered_adapter(
    engine: Engine, tiny_base_dir: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    said: list[Line] = run(engine, start(tmp_path, **options))
    done = trained(said)
    assert (done.adapter_step is not None) == bool(options)
    check(done.canary, tiny_base_dir, Path(done.directory))
    written = [line for line in said if isinstance(line, CheckpointModelWritten)]
    for line in (written[0], written[-1]):
        check(line.canary, tiny_base_dir, Path(line.directory))
    assert written[0].canary != written[-1].canary


def test_canary_changes_nothing_and_repeats_itself(engine: Engine) -> None:
    adapter = engine.create_adapter(settings())
    untrained = canary(engine, adapter)
    train_step(engine, adapter, rows(1, 4), rate=2e-2)
    before = engine.save(adapter)
    found = canary(engine, adapter)
    assert found == canary(engine, adapter) != untrained
    for kept, now in zip(before, engine.save(adapter), strict=True):
        assert all(torch.equal(now[name], value) for name, value in kept.items())
    assert not adapter.bank.grads.any()


@pytest.mark.parametrize("vocabulary", [5, 272, 32_000, 151_936])
def test_prompt_follows_from_the_vocabulary(vocabulary: int) -> None:
    tokens = prompt(vocabulary)
    assert len(tokens) == PROMPT_TOKENS
    assert all(0 <= token < vocabulary for token in tokens)
    assert len(set(tokens)) == min(PROMPT_TOKENS, vocabulary)
