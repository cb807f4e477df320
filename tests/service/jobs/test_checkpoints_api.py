"""A job's checkpoint models as the stock SDK lists, uses and deletes them."""

from typing import Any

import openai
import pytest
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint

from service.contracts.ids import ProjectId
from service.contracts.manifest import AdapterManifest, adapter_id_of
from service.contracts.worker import Lease
from service.errors import ModelNotFound
from service.gateway.resolve import Resolver, Target
from tests.service.conftest import Service
from tests.service.stage import Stage


class Training:
    """A running job with the SDK's client of its owner."""

    def __init__(self, service: Service, stage: Stage, **body: Any) -> None:
        self.service, self.stage = service, stage
        self.project: ProjectId = service.call(stage.project())
        self.client = service.client(service.call(stage.key(self.project)))
        service.call(stage.rows("update jobs set status = 'cancelled' where status = 'queued' returning id"))
        self.job: str = service.call(stage.job(self.project, **body))
        self.lease: Lease = service.call(stage.claimed())

    def reach(self, *steps: int, **fields: Any) -> list[AdapterManifest]:
        return [self.service.call(self.stage.checkpoint_model(self.lease, step=step, **fields)) for step in steps]

    def list(self, **query: Any) -> list[FineTuningJobCheckpoint]:
        return self.client.fine_tuning.jobs.checkpoints.list(self.job, **query).data

    def target(self, name: str) -> Target:
        return self.service.call(Resolver(self.service.resources).target(self.project, name))


@pytest.fixture
def training(service: Service, stage: Stage) -> Training:
    return Training(service, stage, suffix="poems")


def test_a_running_jobs_checkpoints_have_openais_shape(training: Training) -> None:
    training.reach(10, loss=1.25)
    (shown,) = training.list()
    FineTuningJobCheckpoint.model_validate(shown.to_dict())
    assert shown.id.startswith("ftckpt_")
    assert (shown.object, shown.fine_tuning_job_id, shown.step_number) == (
        "fine_tuning.job.checkpoint",
        training.job,
        10,
    )
    base, organization, suffix, unique, step = shown.fine_tuned_model_checkpoint.removeprefix("ft:").split(":")
    assert (base, suffix, len(unique), step) == ("weft-tiny", "poems", 8, "ckpt-step-10")
    assert organization.startswith("acme-")
    assert (shown.metrics.step, shown.metrics.train_loss, shown.metrics.full_valid_loss) == (10, 0.5, 1.25)
    assert shown.metrics.valid_loss is None
    event = training.client.fine_tuning.jobs.list_events(training.job).data[0]
    assert (event.message, event.level, event.type) == ("Checkpoint created at step 10", "info", "message")
    assert training.client.fine_tuning.jobs.retrieve(training.job).fine_tuned_model is None


def test_a_checkpoint_is_a_model_like_any_other(training: Training) -> None:
    first, second = training.reach(10, 20)
    names = [shown.fine_tuned_model_checkpoint for shown in reversed(training.list())]
    assert set(names) < {model.id for model in training.client.models.list()}
    assert [training.target(name).model for name in names] == [adapter_id_of(first), adapter_id_of(second)]
    assert training.target(names[0]).base == "weft-tiny"
    shown = training.client.models.retrieve(names[0])
    assert shown.owned_by == names[0].split(":")[2]
    assert training.client.models.delete(names[0]).deleted
    with pytest.raises(openai.NotFoundError):
        training.client.models.retrieve(names[0])
    with pytest.raises(ModelNotFound):
        training.target(names[0])
    assert [shown.fine_tuned_model_checkpoint for shown in training.list()] == names[1:]


def test_the_final_model_has_the_name_that_the_checkpoints_began(training: Training) -> None:
    training.reach(10)
    finished = training.service.call(training.stage.succeed(training.lease))
    (shown,) = training.list()
    assert shown.fine_tuned_model_checkpoint == f"{finished.fine_tuned_model}:ckpt-step-10"
    assert training.client.fine_tuning.jobs.retrieve(training.job).fine_tuned_model == finished.fine_tuned_model
    assert training.target(finished.fine_tuned_model).model != training.target(shown.fine_tuned_model_checkpoint).model


def test_pages_go_from_the_newest_and_over_a_retired_one(training: Training) -> None:
    training.reach(10, 20, 30)
    steps = [shown.step_number for shown in training.list()]
    assert steps == [30, 20, 10]
    page = training.client.fine_tuning.jobs.checkpoints.list(training.job, limit=2)
    assert ([shown.step_number for shown in page.data], page.has_more) == ([30, 20], True)
    raw = page.to_dict()
    assert (raw["first_id"], raw["last_id"]) == (page.data[0].id, page.data[1].id)
    training.client.models.delete(page.data[1].fine_tuned_model_checkpoint)
    assert [shown.step_number for shown in training.list(after=page.data[1].id)] == [10]
    every = training.client.fine_tuning.jobs.checkpoints.list(training.job, limit=1)
    assert [shown.step_number for shown in every] == [30, 10]
    with pytest.raises(openai.BadRequestError) as refused:
        training.list(after="ftckpt_unknown")
    assert refused.value.param == "after"
    for limit in (0, 101):
        with pytest.raises(openai.BadRequestError):
            training.list(limit=limit)


@pytest.mark.parametrize("outcome", ["cancelled", "failed"])
def test_a_job_that_ends_otherwise_keeps_its_checkpoints(training: Training, outcome: str) -> None:
    training.reach(10)
    failure = {"code": "loss_diverged", "message": "NaN"} if outcome == "failed" else None
    training.service.call(training.stage.finish(training.lease, outcome=outcome, failure=failure))
    (shown,) = training.list()
    assert training.target(shown.fine_tuned_model_checkpoint).is_adapter
    assert training.client.fine_tuning.jobs.retrieve(training.job).result_files == []


def test_strangers_see_no_checkpoint(service: Service, stage: Stage, training: Training) -> None:
    training.reach(10)
    name = training.list()[0].fine_tuned_model_checkpoint
    stranger = service.client(service.call(stage.key(service.call(stage.project()))))
    with pytest.raises(openai.NotFoundError):
        stranger.fine_tuning.jobs.checkpoints.list(training.job)
    for call in (stranger.models.retrieve, stranger.models.delete):
        with pytest.raises(openai.NotFoundError):
            call(name)
    assert training.list() != []
