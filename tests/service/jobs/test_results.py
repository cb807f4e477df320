"""The results file: made once with the success, of what the events told, and a file like any other from then on."""

import csv
import io
import json
from datetime import timedelta
from typing import Any

import openai
import pytest
from sqlalchemy import text

from service.contracts.ids import ProjectId
from service.contracts.worker import Event, Lease
from service.errors import LeaseLost
from service.files.sweep import sweep
from service.leases import finish
from tests.service.conftest import Service
from tests.service.stage import Stage

OPENAIS = ["step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy"]
OURS = ["full_valid_loss", "full_valid_mean_token_accuracy", "full_valid_mean_kl"]
REWARDS = ["train_reward_accuracy", "train_reward_margin"]


class Training:
    """A running job with the SDK's client of its owner."""

    def __init__(self, service: Service, stage: Stage, method: str) -> None:
        self.service, self.stage = service, stage
        self.project: ProjectId = service.call(stage.project())
        self.client = service.client(service.call(stage.key(self.project)))
        service.call(stage.rows("update jobs set status = 'cancelled' where status = 'queued' returning id"))
        example_format = "preference" if method == "dpo" else "chat"
        file = service.call(stage.file(self.project, example_format=example_format))
        self.job: str = service.call(stage.job(self.project, training_file=file, method={"type": method}))
        self.lease: Lease = service.call(stage.claimed())
        self.given = self.stored()

    def stored(self) -> set[str]:
        return set(self.service.call(self.stage.keys(f"t/{self.project}/files/")))

    def tell(self, *steps: dict[str, Any]) -> None:
        self.service.call(self.stage.report(self.lease, events=tuple(metrics(**step) for step in steps)))

    def succeed(self, *last: dict[str, Any]) -> None:
        manifest = self.service.call(self.stage.upload_adapter(self.lease))
        events = tuple(metrics(**step) for step in last)
        self.service.call(self.stage.finish(self.lease, outcome="succeeded", adapter=manifest, events=events))

    def table(self) -> list[dict[str, str]]:
        (file,) = self.client.fine_tuning.jobs.retrieve(self.job).result_files
        return list(csv.DictReader(io.StringIO(self.client.files.content(file).text)))


def metrics(**data: Any) -> Event:
    return Event(id=f"ftevent-m{data['step']}", type="metrics", message=f"Step {data['step']}", data=data)


@pytest.fixture
def training(service: Service, stage: Stage) -> Training:
    return Training(service, stage, "supervised")


def test_the_file_has_a_row_for_each_step_and_an_empty_cell_for_what_is_unknown(training: Training) -> None:
    training.tell(
        {"step": 2, "train_loss": 0.25, "train_mean_token_accuracy": 0.5, "learning_rate": 1e-3},
        {"step": 1, "train_loss": 0.1 + 0.2, "train_mean_token_accuracy": 0.0},
    )
    evaluated = {"valid_loss": 0.5, "full_valid_loss": 0.5, "full_valid_mean_kl": 0.01, "valid_mean_token_accuracy": 1}
    training.succeed({"step": 10, "train_loss": float("nan"), **evaluated})
    rows = training.table()
    assert list(rows[0]) == OPENAIS + OURS
    assert [[row[name] for name in OPENAIS] for row in rows] == [
        ["1", "0.30000000000000004", "0.0", "", ""],
        ["2", "0.25", "0.5", "", ""],
        ["10", "", "", "0.5", "1"],
    ]
    assert [rows[2][name] for name in OURS] == ["0.5", "", "0.01"]


def test_a_step_told_again_shows_once_with_the_newer_numbers(service: Service, training: Training) -> None:
    training.tell({"step": 1, "train_loss": 0.9}, {"step": 2, "train_loss": 0.8})
    service.call(training.stage.finish(training.lease, outcome="released"))
    training.lease = service.call(training.stage.claimed())
    training.tell({"step": 2, "train_loss": 0.5})
    training.succeed()
    assert [(row["step"], row["train_loss"]) for row in training.table()] == [("1", "0.9"), ("2", "0.5")]


def test_preference_training_shows_its_rewards(service: Service, stage: Stage) -> None:
    training = Training(service, stage, "dpo")
    training.succeed({"step": 1, "train_loss": 0.7, "train_reward_accuracy": 0.75, "train_reward_margin": -0.5})
    (row,) = training.table()
    assert list(row)[:10] == OPENAIS + OURS + REWARDS
    assert [row[name] for name in REWARDS] == ["0.75", "-0.5"]
    assert row["full_valid_reward_margin"] == ""


def test_the_file_is_one_like_any_other(training: Training) -> None:
    training.succeed({"step": 1, "train_loss": 0.5})
    job = training.client.fine_tuning.jobs.retrieve(training.job)
    (file,) = job.result_files
    (shown,) = training.client.files.list(purpose="fine-tune-results").data
    assert shown == training.client.files.retrieve(file)
    body = training.client.files.content(file).content
    assert body == (",".join(OPENAIS + OURS) + "\n1,0.5,,,,,,\n").encode()
    assert (shown.filename, shown.purpose, shown.status) == ("step_metrics.csv", "fine-tune-results", "processed")
    assert shown.bytes == len(body)
    with pytest.raises(openai.BadRequestError) as refused:
        training.client.fine_tuning.jobs.create(model="weft-tiny", training_file=file)
    assert refused.value.code == "invalid_file_purpose"
    assert training.client.files.delete(file).deleted
    with pytest.raises(openai.NotFoundError):
        training.client.files.content(file)


def test_a_job_stopped_early_has_results_and_keeps_its_total(service: Service, training: Training) -> None:
    training.tell({"step": 40, "train_loss": 0.5}, {"step": 60, "train_loss": 0.4})
    manifest = service.call(training.stage.upload_adapter(training.lease, step=40))
    service.call(training.stage.finish(training.lease, outcome="succeeded", step=60, adapter=manifest))
    assert [row["step"] for row in training.table()] == ["40", "60"]
    row = service.call(training.stage.row(training.job))
    assert (row.status, row.step, row.total_steps) == ("succeeded", 60, 100)


def test_a_repeated_finish_makes_no_second_file(service: Service, training: Training) -> None:
    training.succeed({"step": 1, "train_loss": 0.5})
    first = training.client.fine_tuning.jobs.retrieve(training.job)
    training.succeed({"step": 1, "train_loss": 0.5})
    assert training.client.fine_tuning.jobs.retrieve(training.job) == first
    assert len(training.client.files.list(purpose="fine-tune-results").data) == 1
    assert len(training.stored() - training.given) == 1


@pytest.mark.parametrize("end", ["killed", "cancelled", "lease lost"])
def test_a_file_without_a_success_is_never_seen_and_swept(
    service: Service, training: Training, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between storing the file and committing the success, something goes wrong."""
    commit = finish.commit_finish

    async def interrupted(session: Any, job: str, *rest: Any) -> Any:
        if end == "killed":
            raise RuntimeError("the process died here")
        change = "want = 'cancel'" if end == "cancelled" else "epoch = epoch + 1"
        await session.execute(text(f"update jobs set {change} where id = :job"), {"job": job})
        return await commit(session, job, *rest)

    monkeypatch.setattr(finish, "commit_finish", interrupted)
    expected = {"killed": RuntimeError, "lease lost": LeaseLost}
    if end in expected:
        with pytest.raises(expected[end]):
            training.succeed({"step": 1})
    else:
        training.succeed({"step": 1})
    assert training.client.fine_tuning.jobs.retrieve(training.job).result_files == []
    assert training.client.files.list(purpose="fine-tune-results").data == []
    service.call(sweep(service.resources, timedelta(0)))
    assert len(training.stored() - training.given) == 1, "it may be under way still"
    late = "update files set deleted_at = now() - interval '1 s' where project_id = :project and deleted_at is not null"
    service.call(training.stage.rows(f"{late} returning id", project=training.project))
    service.call(sweep(service.resources, timedelta(0)))
    assert training.stored() == training.given
    if end == "killed":
        monkeypatch.undo()
        training.succeed({"step": 1})
        assert len(training.table()) == 1


def test_new_fields_of_metrics_pass_through(training: Training) -> None:
    data = {
        "step": 1,
        "tokens_per_second": 1234.5,
        "queue_wait_seconds": 0.25,
        "step_share": 0.125,
        "learning_rate": 3e-4,
        "grad_norm": 0.75,
    }
    training.tell(data)
    event = training.client.fine_tuning.jobs.list_events(training.job).data[0]
    assert event.data == json.loads(json.dumps(data))
