"""Jobs that are created before their files are processed: they wait, and begin or fail by what those prove to be."""

import asyncio
from typing import Any

import openai
import pytest

from service.contracts.ids import ProjectId
from service.jobs import waiting
from service.settings import ServiceSettings
from tests.conftest import wait_until
from tests.service.conftest import Service
from tests.service.stage import LINE, Stage


@pytest.fixture(scope="module")
def service_settings(service_settings: ServiceSettings) -> ServiceSettings:
    return service_settings.model_copy(update={"foreground_bytes": 1})


class Owner:
    def __init__(self, service: Service, stage: Stage) -> None:
        self.project: ProjectId = service.call(stage.project())
        self.client = service.client(service.call(stage.key(self.project)))
        self.jobs = self.client.fine_tuning.jobs
        self._call, self._stage = service.call, stage

    def unready(self, **columns: Any) -> str:
        """A file that is still being put together."""
        return self._call(self._stage.file(self.project, status="uploaded", examples=0, bytes=1640, **columns))

    def ready(self, file: str, **columns: Any) -> None:
        """Ends that, as the assembler does."""
        values = {"status": "processed", "examples": 20, "status_details": None, **columns}
        places = ", ".join(f"{name} = :{name}" for name in values)
        self._call(self._stage.rows(f"update files set {places} where id = :file returning id", file=file, **values))

    def create(self, file: str, **body: Any) -> Any:
        return self.jobs.create(**{"model": "weft-tiny", "training_file": file, **body})

    def status(self, job: str) -> str:
        return self.jobs.retrieve(job).status

    def has(self, job: str, status: str) -> None:
        wait_until(lambda: self.status(job) == status, what=f"{job} {status}")

    def messages(self, job: str) -> list[str]:
        return self._call(self._stage.messages(job))


@pytest.fixture(scope="module")
def owner(service: Service, stage: Stage) -> Owner:
    return Owner(service, stage)


def test_a_stock_upload_in_parts_and_a_job_at_once(owner: Owner) -> None:
    body = LINE * 20
    upload = owner.client.uploads.create(
        bytes=len(body), filename="train.jsonl", mime_type="text/jsonl", purpose="fine-tune"
    )
    part = owner.client.uploads.parts.create(upload.id, data=body)
    file = owner.client.uploads.complete(upload.id, part_ids=[part.id]).file
    assert file is not None
    job = owner.create(file.id)
    assert job.status in {"validating_files", "queued"}
    owner.has(job.id, "queued")
    assert owner.jobs.retrieve(job.id).hyperparameters.n_epochs == 5


def test_a_waiting_job_shows_what_was_asked_for_and_what_it_waits_for(owner: Owner) -> None:
    file = owner.unready()
    job = owner.create(file, seed=7, hyperparameters={"batch_size": 4})
    shown = job.to_dict()
    assert (shown["status"], shown["phase"], shown["blocked_by"]) == ("validating_files", "waiting", "file")
    assert (shown["seed"], shown["hyperparameter_rules"], shown["queue_position"]) == (7, {}, None)
    assert shown["hyperparameters"] == {"n_epochs": "auto", "batch_size": 4, "learning_rate_multiplier": "auto"}
    asked = shown["method"]["supervised"]["hyperparameters"]
    assert (asked["batch_size"], asked["lora_rank"]) == (4, "auto")
    assert owner.messages(job.id) == [f"Created fine-tuning job: {job.id}", f"Validating training file: {file}"]
    owner.ready(file)
    owner.has(job.id, "queued")
    resolved = owner.jobs.retrieve(job.id).to_dict()
    assert resolved["seed"] == 7
    assert resolved["hyperparameters"] == {"n_epochs": 5, "batch_size": 4, "learning_rate_multiplier": 1.5}
    assert resolved["method"]["supervised"]["hyperparameters"]["lora_rank"] == 16
    assert owner.messages(job.id)[2:] == ["Files validated, moving job to queued state"]


@pytest.mark.parametrize("place", ["training_file", "validation_file"])
def test_a_file_that_turns_out_bad_fails_the_job(owner: Owner, place: str) -> None:
    good, bad = owner.unready(), owner.unready()
    other = {"validation_file": bad} if place == "validation_file" else {}
    job = owner.create(good if other else bad, **other)
    owner.ready(good)
    owner.ready(bad, status="error", status_details="Line 3 is not JSON.")
    owner.has(job.id, "failed")
    ended = owner.jobs.retrieve(job.id)
    message = f"File '{bad}' cannot be used: Line 3 is not JSON."
    assert ended.error is not None
    assert ended.error.to_dict() == {"code": f"invalid_{place}", "message": message, "param": place}
    event = owner.jobs.list_events(job.id).data[0]
    assert (event.level, event.message) == ("error", message)
    assert event.to_dict()["data"] == {"error_code": f"invalid_{place}", "error_param": place}


def test_too_few_examples_are_told_as_openai_tells_them(owner: Owner) -> None:
    file = owner.unready()
    job = owner.create(file)
    owner.ready(file, examples=5)
    owner.has(job.id, "failed")
    event = owner.jobs.list_events(job.id).data[0]
    assert event.message == "Training file has 5 example(s), but must have at least 10 examples"
    assert event.to_dict()["data"] == {"error_code": "invalid_n_examples", "error_param": "training_file"}


def test_what_no_file_could_make_right_is_refused_at_once(owner: Owner) -> None:
    file, batch = owner.unready(), owner.unready(purpose="batch")
    refusals: list[tuple[dict[str, Any], str]] = [
        ({"file": batch}, "training_file"),
        ({"file": file, "hyperparameters": {"max_seq_length": 4096}}, "max_seq_length"),
        ({"file": file, "hyperparameters": {"early_stopping": True}}, "early_stopping"),
        ({"file": file, "validation_file": "file-unknown"}, "validation_file"),
    ]
    for body, param in refusals:
        with pytest.raises(openai.BadRequestError) as refused:
            owner.create(**body)
        assert refused.value.param == param
    with pytest.raises(openai.BadRequestError) as refused:
        owner.create(file, extra_body={"dry_run": True})
    assert refused.value.code == "file_not_processed", "an estimate needs the file"


def test_pause_resume_and_cancel_of_a_waiting_job(owner: Owner) -> None:
    file = owner.unready()
    paused, resumed, cancelled = (owner.create(file).id for _ in range(3))
    assert [owner.jobs.pause(paused).status for _ in range(2)] == ["pausing"] * 2
    owner.jobs.pause(resumed)
    assert owner.jobs.resume(resumed).status == "validating_files"
    assert owner.jobs.cancel(cancelled).status == "cancelled"
    owner.ready(file)
    owner.has(paused, "paused")
    owner.has(resumed, "queued")
    assert owner.status(cancelled) == "cancelled"
    assert owner.jobs.retrieve(cancelled).to_dict()["hyperparameters"]["n_epochs"] == "auto"
    assert owner.jobs.resume(paused).status == "queued"


def test_a_file_deleted_meanwhile_is_used_all_the_same(service: Service, stage: Stage, owner: Owner) -> None:
    service.call(stage.rows("update jobs set status = 'cancelled' where status = 'queued' returning id"))
    file = owner.unready()
    job = owner.create(file)
    owner.client.files.delete(file)
    owner.ready(file)
    owner.has(job.id, "queued")
    assert service.call(stage.claimed()).spec.job_id == job.id


def test_any_number_of_processes_may_look_at_once(service: Service, stage: Stage, owner: Owner) -> None:
    file = owner.unready()
    jobs = [owner.create(file).id for _ in range(5)]
    owner.ready(file)

    async def together() -> None:
        await asyncio.gather(*(waiting.settle(service.resources) for _ in range(4)))

    service.call(together())
    for job in jobs:
        assert owner.messages(job).count("Files validated, moving job to queued state") == 1
