"""Malformed, diverging and oversized jobs among seven good ones, through the loop that serves the agent.

All commands are there before the first step, so that passes have the same shapes with the bad jobs and without them.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.trainer.engine.jobs import start, write_rows
from tests.trainer.engine.serving import Agent, serve
from tests.trainer.engine.test_engine_isolation import Tight
from tests.trainer.engine.test_engine_process import EngineProcess
from trainer.engine.base import load
from trainer.engine.memory import Account
from trainer.engine.plan import Row
from trainer.protocol import JobFailed, Line, Start, Trained

GOOD = 7
LARGEST_PASS = 400
"""Padded tokens that the device's memory holds, whatever the account says."""

PROCESS_TOLERANCE = 1e-5
"""There the good jobs may start in other steps, and so in passes of other shapes."""


def same_rows(seed: int, length: int = 24, count: int = 6) -> list[Row]:
    random = np.random.default_rng(seed)
    ones = np.ones(length, dtype=np.float32)
    return [Row(random.integers(4, 384, length).astype(np.int32), ones) for _ in range(count)]


def job(root: Path, job_id: str, made: list[Row], learning_rate: float = 1e-2, method: str = "supervised") -> Start:
    folder = root / job_id / "training"
    if not folder.exists():
        write_rows(folder, made)
    return start(root, job_id, count=len(made), learning_rate=learning_rate, method=method)


def spoilt(root: Path, job_id: str, spoil: Callable[[Row], Row]) -> Start:
    return job(root, job_id, [spoil(row) for row in same_rows(50)])


def ids(token: int) -> Callable[[Row], Row]:
    return lambda row: Row(np.full_like(row.input_ids, token), row.weights)


def weigh(weight: float) -> Callable[[Row], Row]:
    return lambda row: Row(row.input_ids, np.full_like(row.weights, weight))


def bad_jobs(root: Path) -> list[tuple[Start, str]]:
    """Each with the code it must fail with. Most are such as the preparer would never write."""
    absent = start(root, "ftjob-absent").model_copy(update={"training_dir": str(root / "nowhere")})
    torn = job(root, "ftjob-torn", same_rows(51))
    for file in Path(torn.training_dir).glob("*.arrow"):
        file.write_bytes(file.read_bytes()[:100])
    return [
        (spoilt(root, "ftjob-foreign", ids(384)), "internal_error"),
        (spoilt(root, "ftjob-negative", ids(-1)), "internal_error"),
        (spoilt(root, "ftjob-weights", weigh(np.nan)), "loss_diverged"),
        (spoilt(root, "ftjob-infinite", weigh(np.inf)), "loss_diverged"),
        (spoilt(root, "ftjob-unlabelled", weigh(0.0)), "loss_diverged"),
        (absent, "internal_error"),
        (torn, "internal_error"),
        (job(root, "ftjob-nan", same_rows(52), learning_rate=1e30), "loss_diverged"),
        (job(root, "ftjob-context", same_rows(53, length=513)), "internal_error"),
        (job(root, "ftjob-one-row", same_rows(54, length=500)), "out_of_memory"),
        (job(root, "ftjob-memory", same_rows(55, length=510), method="dpo"), "out_of_memory"),
    ]


@pytest.fixture
def limit(tiny_base_dir: Path) -> int:
    """Bytes with room for the good jobs and not for pairs of long rows."""
    _, books = load(str(tiny_base_dir), "cpu", threads=1)
    return books.base.training_pass(1600)


def weights(last: Line) -> dict[str, torch.Tensor]:
    assert isinstance(last, Trained)
    return load_file(Path(last.directory) / "adapter_model.safetensors")


def codes(agent: Agent) -> dict[str, str]:
    return {line.job_id: line.failure.code for line in agent.of(JobFailed)}


def test_bad_jobs_among_good_ones_change_nothing_for_them(
    tiny_base_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    good = [job(tmp_path, f"ftjob-{number}", same_rows(number)) for number in range(GOOD)]
    bad = bad_jobs(tmp_path)

    def run(commands: list[Start]) -> Agent:
        engine, loaded = load(str(tiny_base_dir), "cpu", threads=1)
        books = Account(loaded.base, loaded.modules, limit, loaded.token_budget, loaded.shared_budget, on_host=True)
        monkeypatch.setattr(engine._passes._stepper, "train", Tight(engine, LARGEST_PASS).train)
        return serve(engine, books, *commands)

    expected = {line.job_id: weights(line) for line in run(good).of(Trained)}
    among = [command for command, _ in bad]
    for place, command in enumerate(good):
        among.insert(min(len(among), 2 * place + 1), command)
    disturbed = run(among)
    assert codes(disturbed) == {command.spec.job_id: code for command, code in bad}
    found = {line.job_id: weights(line) for line in disturbed.of(Trained)}
    assert len(found) == GOOD
    for name, before in expected.items():
        for key, weight in before.items():
            assert torch.equal(found[name][key], weight)


def test_nor_do_they_in_a_process_of_its_own(tiny_base_dir: Path, tmp_path: Path, limit: int) -> None:
    good = [job(tmp_path, f"ftjob-{number}", same_rows(number)) for number in range(GOOD)]
    # A real device is not short of memory here for one long row.
    bad = [(command, code) for command, code in bad_jobs(tmp_path) if command.spec.job_id != "ftjob-one-row"]
    child = EngineProcess(tiny_base_dir, "--memory-bytes", str(limit), "--token-budget", "512")
    expected = {name: weights(line) for name, line in child.finish(*good).items()}
    last = child.finish(*(command for command, _ in bad), *good)
    assert child.end() == 0
    failed = {name: line.failure.code for name, line in last.items() if isinstance(line, JobFailed)}
    assert failed == {command.spec.job_id: code for command, code in bad}
    for name, before in expected.items():
        for key, weight in weights(last[name]).items():
            torch.testing.assert_close(weight, before[key], rtol=0, atol=PROCESS_TOLERANCE)
