"""Checkpoints and exported adapters as files: whole or absent, verified before use, and readable by whoever serves."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from service.contracts.job import Hyperparameters, JobSpec
from service.contracts.servable import MAX_ABSOLUTE, MAX_SCALE, Unservable
from trainer.checkpoint import (
    CheckpointInvalid,
    CheckpointState,
    Selection,
    StepMetrics,
    read_checkpoint,
    spec_hash,
    verify_checkpoint,
    write_checkpoint,
)
from trainer.export import AdapterFacts, check_facts, target_modules, write_adapter
from trainer.folder import whole_folder

TENSORS = {"m.A": torch.arange(6.0).view(3, 2), "m.B": torch.ones(2, 4)}
STATE = CheckpointState(
    job_id="ftjob-1",
    spec_sha256="a",
    step=3,
    trained_tokens=7,
    unvalidated=StepMetrics(
        train_loss=1.5,
        train_mean_token_accuracy=0.5,
        learning_rate=1e-4,
        grad_norm=0.5,
        tokens_per_second=9.5,
        queue_wait_seconds=0,
        step_share=0.25,
    ),
)
JUDGED = STATE.model_copy(update={"selection": Selection(step=2, loss=1.25, reference=1.25, stale=1)})


def spec(**changes: object) -> JobSpec:
    numbers = {"n_epochs": 1, "batch_size": 1, "learning_rate_multiplier": 1, "learning_rate": 1e-3, "lora_rank": 8}
    more = {"lora_alpha": 16, "warmup_ratio": 0, "lr_scheduler": "linear", "weight_decay": 0, "max_grad_norm": 1}
    return JobSpec.model_validate(
        {
            "job_id": "ftjob-1",
            "project_id": "p",
            "base_model": "tiny",
            "base_fingerprint": "f",
            "chat_template_sha256": None,
            "seed": 1,
            "examples": 1,
            "hyperparameters": Hyperparameters.model_validate({**numbers, **more, "max_seq_length": 64}),
            "rules": {},
            **changes,
        }
    )


def test_a_checkpoint_reads_back_as_written(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c", STATE, TENSORS, TENSORS)
    found = read_checkpoint(tmp_path / "c", "a")
    assert found.state.model_copy(update={"sizes": {}}) == STATE
    assert all(torch.equal(found.adapter[name], TENSORS[name]) for name in TENSORS)
    assert found.best is None
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [
        "adapter.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]


def test_the_best_weights_come_with_the_evaluation_that_chose_them(tmp_path: Path) -> None:
    best = {name: tensor + 1 for name, tensor in TENSORS.items()}
    write_checkpoint(tmp_path / "c", JUDGED, TENSORS, TENSORS, best)
    found = read_checkpoint(tmp_path / "c", "a")
    assert found.state.selection == JUDGED.selection
    assert found.best is not None
    assert all(torch.equal(found.best[name], best[name]) for name in best)


def test_a_checkpoint_of_an_earlier_format_is_refused_with_its_version(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c", STATE, TENSORS, TENSORS)
    path = tmp_path / "c" / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 1}))
    with pytest.raises(CheckpointInvalid, match="format version 1, and this trainer reads 2"):
        verify_checkpoint(tmp_path / "c")


FILES = ["adapter.safetensors", "best.safetensors", "optimizer.safetensors", "state.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
def test_damage_is_found_before_use(tmp_path: Path, name: str, damage: str) -> None:
    write_checkpoint(tmp_path / "c", JUDGED, TENSORS, TENSORS, TENSORS)
    path = tmp_path / "c" / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    with pytest.raises(CheckpointInvalid):
        verify_checkpoint(tmp_path / "c")


def test_bytes_that_are_no_tensors_are_found(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c", STATE, TENSORS, TENSORS)
    path = tmp_path / "c" / "adapter.safetensors"
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(CheckpointInvalid, match="unreadable"):
        read_checkpoint(tmp_path / "c", "a")


def test_a_checkpoint_of_other_work_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c", STATE, TENSORS, TENSORS)
    with pytest.raises(CheckpointInvalid, match="another job"):
        read_checkpoint(tmp_path / "c", "b")


def test_the_hash_covers_what_steps_depend_on_and_nothing_else() -> None:
    plain = spec_hash(spec(), 10)
    assert plain == spec_hash(spec(rules={"seed": "user"}), 10)
    assert (
        len(
            {
                plain,
                spec_hash(spec(), 11),
                spec_hash(spec(seed=2), 10),
                spec_hash(spec(base_fingerprint="g"), 10),
                spec_hash(spec(method="dpo"), 10),
            }
        )
        == 5
    )


WRITER = """
import sys, torch, pathlib
from trainer.checkpoint import CheckpointState, write_checkpoint
root = pathlib.Path(sys.argv[1])
print("go", flush=True)
for step in range(1, 10**6):
    state = CheckpointState(job_id="j", spec_sha256="a", step=step, trained_tokens=step)
    tensors = {"m.A": torch.full((500, 200), float(step))}
    write_checkpoint(root / f"step-{step % 2}", state, tensors, tensors)
"""


@pytest.mark.parametrize("delay", [0.02, 0.11, 0.23])
def test_killing_a_writer_leaves_whole_checkpoints_only(tmp_path: Path, delay: float) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(delay)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for folder in tmp_path.glob("step-*"):
        found = read_checkpoint(folder, "a")
        assert float(found.adapter["m.A"].min()) == float(found.optimizer["m.A"].max()) == found.state.step


def test_a_failed_writer_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    def fill(text: str) -> None:
        with whole_folder(tmp_path / "x") as folder:
            (folder / "file").write_text(text)
            if text == "bad":
                raise OSError("disk full")

    fill("good")
    with pytest.raises(OSError, match="disk full"):
        fill("bad")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x" / "file").read_text() == "good"


LIMITED = """
import resource, signal, sys, torch, pathlib
from trainer.checkpoint import CheckpointState, write_checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
state = CheckpointState(job_id="j", spec_sha256="a", step=1, trained_tokens=1)
tensors = {"m.A": torch.zeros(500, 200)}
try:
    write_checkpoint(pathlib.Path(sys.argv[1]) / "c", state, tensors, tensors)
except OSError as error:
    print("OSError", error.strerror)
"""


def test_a_disk_that_takes_no_more_is_an_oserror_and_leaves_nothing(tmp_path: Path) -> None:
    said = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, check=True, text=True)
    assert said.stdout.startswith("OSError")
    assert not list(tmp_path.iterdir())


FACTS = AdapterFacts(base_model="tiny", rank=2, alpha=3.0, trained=("l.0.q", "l.1.q", "l.0.k", "l.1.k"), others=())


def test_targets_are_short_where_that_is_exact() -> None:
    assert target_modules(FACTS) == ("k", "q")
    partly = AdapterFacts("tiny", 2, 3.0, trained=("l.0.q",), others=("l.1.q", "l.0.k"))
    assert target_modules(partly) == ("l.0.q",)


@pytest.mark.parametrize("rank", [1, 2])
def test_an_export_has_pefts_names_shapes_and_precision(tmp_path: Path, rank: int) -> None:
    facts = AdapterFacts("tiny", rank, 3.5, trained=("l.q",), others=())
    tensors = {"l.q.A": torch.randn(5, rank), "l.q.B": torch.randn(rank, 4)}
    write_adapter(tmp_path / "a", facts, tensors, torch.bfloat16)
    written = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert {name: (tuple(t.shape), t.dtype) for name, t in written.items()} == {
        "base_model.model.l.q.lora_A.weight": ((rank, 5), torch.bfloat16),
        "base_model.model.l.q.lora_B.weight": ((4, rank), torch.bfloat16),
    }
    assert torch.equal(written["base_model.model.l.q.lora_A.weight"], tensors["l.q.A"].T.bfloat16())
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (rank, 3.5, "tiny")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1.01 * MAX_ABSOLUTE, -3e38])
@pytest.mark.parametrize("factor", ["A", "B"])
def test_no_value_is_exported_that_no_replica_takes(tmp_path: Path, factor: str, value: float) -> None:
    facts = AdapterFacts("tiny", 2, 3.0, trained=("l.q",), others=())
    tensors = {"l.q.A": torch.full((5, 2), MAX_ABSOLUTE), "l.q.B": torch.full((2, 4), -MAX_ABSOLUTE)}
    write_adapter(tmp_path / "bounded", facts, tensors, torch.float32)
    tensors[f"l.q.{factor}"][1, 1] = value
    for stored in (torch.float32, torch.bfloat16):
        with pytest.raises(Unservable, match=rf"l\.q\.lora_{factor}\.weight holds values"):
            write_adapter(tmp_path / "a", facts, tensors, stored)
    assert [path.name for path in tmp_path.iterdir()] == ["bounded"]


def test_no_adapter_is_exported_whose_scale_or_targets_no_replica_takes(tmp_path: Path) -> None:
    tensors = {f"{name}.{part}": torch.ones(2, 2) for name in FACTS.trained for part in "AB"}
    write_adapter(tmp_path / "largest", replace(FACTS, alpha=2 * MAX_SCALE), tensors, torch.float32)
    with pytest.raises(Unservable, match="lora_alpha"):
        write_adapter(tmp_path / "a", replace(FACTS, alpha=2 * MAX_SCALE + 1), tensors, torch.float32)
    many = tuple(f"l.{number}.q" for number in range(300))
    check_facts(replace(FACTS, trained=many))
    with pytest.raises(Unservable, match="257 names"):
        check_facts(replace(FACTS, trained=many[:257], others=many[257:]))


def test_the_same_adapter_is_the_same_bytes(tmp_path: Path) -> None:
    tensors = {f"{name}.{part}": torch.ones(2, 2) for name in FACTS.trained for part in "AB"}
    for folder in ("a", "b"):
        write_adapter(tmp_path / folder, FACTS, tensors, torch.float32)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
