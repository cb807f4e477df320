"""Files, jobs, adapters, keys and usage by the command line, against a real service."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from service.contracts.ids import JobId
from service.contracts.worker import JobFailure
from tests.clients.cli.conftest import STEPS, Open, Shell, learn
from tests.clients.conftest import Tenant, examples, finish
from tests.service.conftest import Service
from tests.service.stage import Stage


@pytest.fixture
def train(tmp_path: Path) -> Path:
    (tmp_path / "train.jsonl").write_bytes(examples())
    return tmp_path / "train.jsonl"


def test_a_files_life(shell: Shell, train: Path) -> None:
    made = shell.ok("files", "upload", str(train), "--json").json
    assert (made["filename"], made["bytes"]) == ("train.jsonl", len(examples()))
    assert made["id"] in {cells[0] for cells in shell.ok("files", "list").cells}
    assert ["STATUS", "processed"] in shell.ok("files", "show", made["id"]).cells
    assert shell.ok("files", "fetch", made["id"]).out.encode() == examples()
    shell.ok("files", "fetch", made["id"], "-o", "copy.jsonl")
    assert (shell.folder / "copy.jsonl").read_bytes() == examples()
    assert ["VALID", "12"] in shell.ok("files", "check", made["id"]).cells
    assert shell.ok("files", "delete", made["id"], "--json").json[0]["deleted"]


def test_what_is_not_there(shell: Shell) -> None:
    ran = shell.run("files", "show", "file-none")
    assert (ran.status, ran.out) == (3, "")
    assert ran.err.startswith("weft: ")
    assert "request req" in ran.err
    assert ran.err.count("\n") == 1
    told = shell.run("jobs", "show", "ftjob-none", "--json")
    assert told.status == 3
    assert '"status": 404' in told.err
    assert '"request_id": "req' in told.err


def test_a_wrong_key(shell: Shell) -> None:
    ran = shell.run("files", "list", WEFT_API_KEY="sk-weft-wrong")
    assert ran.status == 4
    assert "(invalid_api_key, request req" in ran.err


def test_what_the_service_refuses(shell: Shell, train: Path) -> None:
    ran = shell.run("jobs", "create", "--model", "none", "--training-file", str(train))
    assert ran.status in (1, 3)
    assert "none" in ran.err
    assert shell.run("jobs", "create", "--model", "weft-tiny", "--training-file", "train").status == 2
    assert (
        shell.run("jobs", "estimate", "--model", "weft-tiny", "--training-file", str(train), "--set", "x").status == 2
    )


def test_a_jobs_life(shell: Shell, train: Path) -> None:
    described = ("--model", "weft-tiny", "--training-file", str(train), "--epochs", "2", "--rank", "4")
    found = shell.ok("jobs", "estimate", *described, "--json").json
    assert found["tokens"] > 0
    made = shell.ok("jobs", "create", *described, "--set", "lr_scheduler=cosine", "--json").json
    settings = made["method"]["supervised"]["hyperparameters"]
    assert (settings["n_epochs"], settings["lora_rank"], settings["lr_scheduler"]) == (2, 4, "cosine")
    assert shell.ok("jobs", "list", "--limit", "1").cells[0][:3] == [made["id"], "queued", "weft-tiny"]
    assert ["STATUS", "paused"] in shell.ok("jobs", "pause", made["id"]).cells
    assert ["STATUS", "queued"] in shell.ok("jobs", "resume", made["id"]).cells
    assert shell.ok("jobs", "cancel", made["id"], "--json").json["status"] == "cancelled"
    assert any("cancelled" in cells[2] for cells in shell.ok("jobs", "events", made["id"]).cells)


def test_statuses_have_colours_where_they_are_wanted(shell: Shell, queued: JobId, opened: Open) -> None:
    terminal, plain = opened(shell, "jobs", "list"), opened(shell, "jobs", "list", NO_COLOR="1")
    assert (terminal.end(), plain.end()) == (0, 0)
    assert "33" in terminal.screen.styles
    assert plain.screen.styles <= {"0", "1", "2"}
    assert plain.screen.text == terminal.screen.text
    shell.ok("jobs", "cancel", queued)


def test_a_watch_in_a_terminal_draws_the_curve_as_it_goes_on(
    service: Service, stage: Stage, shell: Shell, queued: JobId, opened: Open
) -> None:
    terminal = opened(shell, "jobs", "watch", queued)
    terminal.until("queued")
    lease = service.call(stage.claimed())
    learn(service, stage, lease, last=20)
    terminal.until(f"step 20/{STEPS}")
    assert "━ training loss" in terminal.screen.text
    learn(service, stage, lease, first=21)
    terminal.until(f"step {STEPS}/{STEPS}  loss 0.52  validation 0.72  tokens/s 5120")
    service.call(stage.succeed(lease))
    assert terminal.end() == 0
    shown = terminal.screen.text.splitlines()
    assert shown[0].startswith(f"{queued}  succeeded  over weft-tiny")
    assert shown[-1].startswith("succeeded  ft:weft-tiny:")
    assert sum("training loss" in line for line in shown) == 1


def test_a_watch_in_a_pipe_tells_lines_and_as_json_events(
    service: Service, stage: Stage, shell: Shell, queued: JobId
) -> None:
    lease = service.call(stage.claimed())
    learn(service, stage, lease)
    service.call(stage.succeed(lease))
    lines = shell.ok("jobs", "watch", queued).out.splitlines()
    assert [line[18:] for line in lines if "Step" in line] == [f"Step {step}/{STEPS}" for step in range(1, STEPS + 1)]
    assert lines[-1].startswith("succeeded  ft:")
    *events, job = shell.ok("jobs", "watch", queued, "--json").lines
    assert [event["data"]["step"] for event in events if event["type"] == "metrics"] == list(range(1, STEPS + 1))
    assert (job["id"], job["status"]) == (queued, "succeeded")


def test_a_watch_ends_with_the_jobs_failure(service: Service, stage: Stage, shell: Shell, queued: JobId) -> None:
    failure = JobFailure(code="loss_diverged", message="The loss is no number any more.")
    lease = service.call(stage.claimed())
    service.call(stage.finish(lease, outcome="failed", failure=failure.model_dump()))
    ran = shell.run("jobs", "watch", queued)
    assert ran.status == 1
    assert ran.err == f"weft: Job {queued} failed: The loss is no number any more (loss_diverged)\n"


def test_a_watch_can_be_left(shell: Shell, queued: JobId, opened: Open) -> None:
    assert shell.run("jobs", "watch", queued, "--timeout", "1s").status == 124
    terminal = opened(shell, "jobs", "watch", queued)
    terminal.until("queued")
    terminal.interrupt()
    assert terminal.end() == 130
    assert f"weft jobs cancel {queued}" in terminal.screen.text
    assert "Traceback" not in terminal.screen.text
    assert shell.ok("jobs", "cancel", queued, "--json").json["status"] == "cancelled"


def test_keys_are_made_changed_over_and_ended(shell: Shell, make_project: Callable[[str], tuple[str, str]]) -> None:
    project, _ = make_project("keyed")
    assert project in {cells[0] for cells in shell.ok("projects", "list").cells}
    value = shell.ok("keys", "create", "ci", "--project", project, "--expires", "30d").out.strip()
    assert shell.run("files", "list", WEFT_API_KEY=value).status == 0
    key = next(cells for cells in shell.ok("keys", "list", "--project", project).cells if cells[1] == "ci")
    shell.ok("keys", "revoke", key[0], "--project", project)
    assert key[0] not in shell.ok("keys", "list", "--project", project).out
    assert shell.run("keys", "list").status == 2


def test_usage(service: Service, stage: Stage, shell: Shell, tenant: Tenant, queued: JobId) -> None:
    finish(service, stage, service.call(stage.claimed()))
    of_project = ("--project", tenant.project_id)
    rows = shell.ok("usage", "training", *of_project, "--by", "model").cells
    assert rows
    assert all(len(cells) == 4 for cells in rows)
    assert shell.ok("usage", "costs", *of_project, "--by", "item", "--json").json[0]["object"] == "bucket"
    assert shell.ok("usage", "storage", *of_project).cells[-1][1] == tenant.project_id
    shell.ok("usage", "completions", *of_project, "--every", "1h", "--since", "12h")


def test_models(shell: Shell) -> None:
    assert ["weft-tiny", "weft", "-"] in shell.ok("models").cells, "nobody knows when a base was made"


def test_following_a_jobs_events(service: Service, stage: Stage, shell: Shell, queued: JobId) -> None:
    lease = service.call(stage.claimed())
    worker = threading.Thread(target=lambda: finish(service, stage, lease))
    worker.start()
    said = shell.ok("jobs", "events", queued, "--follow").out
    worker.join(30)
    assert "Step 1/2" in said
    assert "Step 2/2" in said
