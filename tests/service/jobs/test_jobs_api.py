"""The routes of training jobs, as the stock SDK uses them and as hostile callers do."""

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from service.contracts.ids import ProjectId
from tests.service.conftest import Service
from tests.service.stage import Stage


class Owner:
    """One project with a key, a file and the SDK's client."""

    def __init__(self, service: Service, stage: Stage) -> None:
        self.project: ProjectId = service.call(stage.project())
        self.key: str = service.call(stage.key(self.project))
        self.file: str = service.call(stage.file(self.project))
        self.client = service.client(self.key)
        self.jobs = self.client.fine_tuning.jobs

    def create(self, **body: Any) -> Any:
        return self.jobs.create(**{"model": "weft-tiny", "training_file": self.file, **body})


@pytest.fixture(scope="module")
def owner(service: Service, stage: Stage) -> Owner:
    return Owner(service, stage)


@pytest.fixture(scope="module")
def stranger(service: Service, stage: Stage) -> Owner:
    return Owner(service, stage)


@pytest.fixture(scope="module")
def raw(service: Service, owner: Owner) -> Iterator[httpx2.Client]:
    headers = {"authorization": f"Bearer {owner.key}"}
    with httpx2.Client(base_url=f"{service.url}/v1/fine_tuning", headers=headers, timeout=30) as client:
        yield client


def test_a_created_job_has_openais_shape_and_every_value_resolved(owner: Owner) -> None:
    job = owner.create(suffix="poems", seed=42, metadata={"team": "a"})
    shown = job.model_dump()
    assert shown.pop("id").startswith("ftjob-")
    assert shown.pop("created_at") > 1_700_000_000
    assert shown.pop("organization_id").startswith("org-")
    method = shown.pop("method")
    rules = shown.pop("hyperparameter_rules")
    assert shown == {
        "object": "fine_tuning.job",
        "status": "queued",
        "phase": "waiting",
        "error": None,
        "model": "weft-tiny",
        "fine_tuned_model": None,
        "training_file": owner.file,
        "validation_file": None,
        "result_files": [],
        "trained_tokens": None,
        "finished_at": None,
        "estimated_finish": None,
        "queue_position": 1,
        "blocked_by": "base_unavailable",
        "seed": 42,
        "metadata": {"team": "a"},
        "integrations": None,
        "user_provided_suffix": "poems",
        "adapter": None,
        "on_success": None,
        "hyperparameters": {"n_epochs": 5, "batch_size": 1, "learning_rate_multiplier": 1.0},
    }
    resolved = method["supervised"]["hyperparameters"]
    assert method["type"] == "supervised"
    assert set(rules) == set(resolved)
    assert "auto" not in resolved.values()
    assert resolved["max_seq_length"] == 1024


@pytest.mark.parametrize(
    ("suffix", "named"),
    [
        ("My Poems, 2nd try!", "My-Poems-2nd-try"),
        ("a:b/c", "a-b-c"),
        ("Café_v1.2", "Cafe_v1.2"),
        ("詩", ""),
    ],
)
def test_a_suffix_may_be_any_text_of_which_the_model_is_named_after_what_fits(
    service: Service, stage: Stage, owner: Owner, suffix: str, named: str
) -> None:
    _empty_queue(service, stage)
    job = owner.create(suffix=suffix)
    assert job.to_dict()["user_provided_suffix"] == suffix
    model = service.call(stage.succeed(service.call(stage.claimed()))).fine_tuned_model
    assert model.split(":")[3] == named
    assert owner.client.models.retrieve(model).id == model


def test_integrations_are_recorded_and_nothing_is_sent(owner: Owner) -> None:
    wandb: Any = {"project": "p", "tags": ["a", "b"]}
    job = owner.create(integrations=[{"type": "wandb", "wandb": wandb}])
    shown = owner.jobs.retrieve(job.id).to_dict()["integrations"]
    recorded = {"project": "p", "name": None, "entity": None, "tags": ["a", "b"], "run_id": None}
    assert shown == [{"type": "wandb", "wandb": recorded}]
    (warning,) = [event for event in owner.jobs.list_events(job.id) if event.level == "warn"]
    assert "sends nothing" in warning.message


def test_a_job_reads_back_as_it_was_created_and_tells_its_beginning(owner: Owner) -> None:
    job = owner.create()
    assert owner.jobs.retrieve(job.id) == job
    assert 0 <= job.seed <= 2147483647
    events = owner.jobs.list_events(job.id)
    assert [event.message for event in events.data] == [
        "Files validated, moving job to queued state",
        f"Validating training file: {owner.file}",
        f"Created fine-tuning job: {job.id}",
    ]
    first = events.data[0]
    assert (first.object, first.level, first.type) == ("fine_tuning.job.event", "info", "message")
    assert owner.jobs.checkpoints.list(job.id).data == []


def test_both_places_for_hyperparameters_and_ours(owner: Owner) -> None:
    old = owner.create(hyperparameters={"n_epochs": 2, "batch_size": "auto"})
    assert old.hyperparameters.n_epochs == 2
    both = owner.create(
        hyperparameters={"n_epochs": 2, "batch_size": 4},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3, "lora_rank": 8}}},
    )
    resolved = both.to_dict()["method"]["supervised"]["hyperparameters"]
    assert (resolved["n_epochs"], resolved["batch_size"], resolved["lora_rank"]) == (3, 4, 8)
    assert owner.create(method={"type": "supervised"}).hyperparameters.n_epochs == 5


def test_pages_and_the_metadata_filter(service: Service, stage: Stage) -> None:
    own = Owner(service, stage)
    made = [own.create(metadata={"n": str(n), "even": str(n % 2 == 0)} if n else None).id for n in range(7)]
    page = own.jobs.list(limit=3)
    assert ([job.id for job in page.data], page.has_more) == (made[:-4:-1], True)
    assert [job.id for job in own.jobs.list(limit=2)] == made[::-1]
    assert [job.id for job in own.jobs.list(metadata={"even": "True"})] == [made[6], made[4], made[2]]
    assert [job.id for job in own.jobs.list(metadata={"even": "True", "n": "4"})] == [made[4]]
    nothing: list[Any] = list(own.jobs.list(extra_query={"metadata": "null"}))
    assert [(job.id, job.metadata) for job in nothing] == [(made[0], None)]
    events = own.jobs.list_events(made[0], limit=2)
    assert (len(events.data), events.has_more) == (2, True)
    assert len(list(own.jobs.list_events(made[0], limit=1))) == 3


def test_cancel_pause_resume_and_their_repeats(owner: Owner) -> None:
    job = owner.create()
    assert [owner.jobs.pause(job.id).status for _ in range(2)] == ["paused"] * 2
    assert [owner.jobs.resume(job.id).status for _ in range(2)] == ["queued"] * 2
    cancelled = [owner.jobs.cancel(job.id) for _ in range(2)]
    assert cancelled[0] == cancelled[1]
    assert cancelled[0].status == "cancelled"
    assert cancelled[0].finished_at is not None
    assert cancelled[0].error is None
    for call, code in ((owner.jobs.pause, "job_not_pausable"), (owner.jobs.resume, "job_not_resumable")):
        with pytest.raises(openai.BadRequestError) as refused:
            call(job.id)
        assert refused.value.code == code
    assert owner.jobs.list_events(job.id).data[0].message == "Fine-tuning job cancelled"


def test_an_ended_job_cannot_be_cancelled_and_shows_how_it_ended(service: Service, stage: Stage, owner: Owner) -> None:
    _empty_queue(service, stage)
    failed, succeeded = owner.create(), owner.create()
    lease = service.call(stage.claimed())
    failure = {"code": "loss_diverged", "message": "The loss is NaN.", "param": None}
    service.call(stage.finish(lease, outcome="failed", failure=failure))
    service.call(stage.succeed(service.call(stage.claimed()), tokens=77))
    with pytest.raises(openai.BadRequestError) as refused:
        owner.jobs.cancel(failed.id)
    assert refused.value.code == "job_not_cancellable"
    shown = owner.jobs.retrieve(failed.id)
    assert shown.error is not None
    assert (shown.status, shown.error.to_dict(), shown.trained_tokens) == ("failed", failure, None)
    done = owner.jobs.retrieve(succeeded.id)
    assert (done.status, done.trained_tokens, done.error) == ("succeeded", 77, None)
    assert done.fine_tuned_model in {model.id for model in owner.client.models.list()}


def test_a_running_job_is_cancelled_through_its_worker(service: Service, stage: Stage, owner: Owner) -> None:
    _empty_queue(service, stage)
    job = owner.create()
    lease = service.call(stage.claimed())
    told = owner.jobs.cancel(job.id)
    assert told.status == "cancelled", "as OpenAI answers: it can end in no other way any more"
    assert told.finished_at is not None
    assert owner.jobs.retrieve(job.id) == told
    assert service.call(stage.report(lease)).want == "cancel"
    for call in (owner.jobs.pause, owner.jobs.resume):
        with pytest.raises(openai.BadRequestError):
            call(job.id)
    assert service.call(stage.succeed(lease)).status == "cancelled", "whatever its trainer reports"
    ended = owner.jobs.cancel(job.id)
    assert (ended.status, ended.finished_at, ended.fine_tuned_model) == ("cancelled", told.finished_at, None)


def test_a_running_job_is_pausing_until_its_worker_has_saved_it(service: Service, stage: Stage, owner: Owner) -> None:
    _empty_queue(service, stage)
    job = owner.create()
    lease = service.call(stage.claimed())
    assert [owner.jobs.pause(job.id).status for _ in range(2)] == ["pausing"] * 2
    assert owner.jobs.retrieve(job.id).status == "pausing"
    assert owner.jobs.resume(job.id).status == "running", "a pause can be taken back in time"
    owner.jobs.pause(job.id)
    service.call(stage.finish(lease, outcome="paused"))
    assert owner.jobs.retrieve(job.id).status == "paused"
    assert owner.jobs.cancel(job.id).status == "cancelled"


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"suffix": ""}, "invalid_request", "suffix"),
        ({"suffix": "a" * 65}, "invalid_request", "suffix"),
        ({"suffix": "\0"}, "invalid_request", None),
        ({"seed": -1}, "invalid_request", "seed"),
        ({"seed": 2147483648}, "invalid_request", "seed"),
        ({"seed": 1.5}, "invalid_request", "seed"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "invalid_request", "metadata"),
        ({"metadata": {"k" * 65: "x"}}, "invalid_request", None),
        ({"metadata": {"k": "v" * 513}}, "invalid_request", "metadata.k"),
        ({"metadata": {"k": "\0"}}, "invalid_request", None),
        ({"hyperparameters": {"n_epochs": 51}}, "invalid_request", "hyperparameters.n_epochs"),
        ({"hyperparameters": {"batch_size": 257}}, "invalid_request", "hyperparameters.batch_size"),
        (
            {"hyperparameters": {"learning_rate_multiplier": 0}},
            "invalid_request",
            "hyperparameters.learning_rate_multiplier",
        ),
        ({"hyperparameters": {"lora_rank": 65}}, "invalid_request", "hyperparameters.lora_rank"),
        ({"hyperparameters": {"lora_rank": 8, "lora_alpha": 1024}}, "alpha_too_large", "lora_alpha"),
        (
            {"hyperparameters": {"target_modules": ["q_proj"] * 257}},
            "invalid_request",
            "hyperparameters.target_modules",
        ),
        ({"hyperparameters": {"n_layers": 3}}, "invalid_request", "hyperparameters.n_layers"),
        ({"model": "gpt-4o"}, "model_not_found", "model"),
        ({"method": {"type": "reinforcement"}}, "unsupported_method", "method"),
        ({"method": {"type": "supervised", "dpo": {}}}, "invalid_request", "method.dpo"),
        ({"method": {"type": "dpo", "supervised": {}}}, "invalid_request", "method.supervised"),
        ({"method": {"type": "magic"}}, "invalid_request", "method.type"),
        ({"integrations": [{"type": "mlflow"}]}, "invalid_request", "integrations.0.type"),
        ({"integrations": [{"type": "wandb", "wandb": {}}]}, "invalid_request", "integrations.0.wandb.project"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}] * 6}, "invalid_request", "integrations"),
        ({"training_file": "file-unknown"}, "file_not_found", "training_file"),
        ({"validation_file": "file-unknown"}, "file_not_found", "validation_file"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_name(
    owner: Owner, body: dict[str, Any], code: str, param: str | None
) -> None:
    before = len(owner.jobs.list(limit=100).data)
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as refused:
        owner.create(**body)
    assert refused.value.code == code
    assert refused.value.param == param or param is None
    assert len(owner.jobs.list(limit=100).data) == before


def test_unknown_arguments_are_named(owner: Owner) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        owner.create(extra_body={"epochs": 3})
    assert "Unrecognized request argument supplied: epochs" in refused.value.message


def test_files_that_cannot_be_used(service: Service, stage: Stage, owner: Owner, stranger: Owner) -> None:
    few = service.call(stage.file(owner.project, examples=5))
    with pytest.raises(openai.BadRequestError) as refused:
        owner.create(training_file=few)
    assert refused.value.code == "invalid_n_examples"
    assert "Training file has 5 example(s), but must have at least 10 examples" in refused.value.message
    batch = service.call(stage.file(owner.project, purpose="batch"))
    broken = service.call(stage.file(owner.project, status="error", status_details="Line 3 is not JSON."))
    for file, code in ((batch, "invalid_file_purpose"), (broken, "invalid_training_file")):
        with pytest.raises(openai.BadRequestError) as refused:
            owner.create(training_file=file)
        assert refused.value.code == code
    with pytest.raises(openai.BadRequestError, match="same"):
        owner.create(validation_file=owner.file)
    assert owner.create(validation_file=few).validation_file == few, "a small validation file will do"

    deleted = service.call(stage.file(owner.project))
    owner.client.files.delete(deleted)
    answers = {_refusal(owner, file) for file in (deleted, stranger.file, "file-000000000000000000000000")}
    assert len(answers) == 1, "unknown, foreign and deleted files are answered alike"


def test_so_many_jobs_may_wait_and_no_more(service: Service, stage: Stage) -> None:
    own = Owner(service, stage)
    limited = "update projects set max_queued_jobs = 3 where id = :project returning id"
    service.call(stage.rows(limited, project=own.project))
    first, *_ = (own.create().id for _ in range(3))
    own.jobs.pause(first)
    with pytest.raises(openai.RateLimitError) as refused:
        own.create()
    assert (refused.value.code, refused.value.response.headers["x-should-retry"]) == ("too_many_queued_jobs", "false")
    assert len(own.jobs.list().data) == 3
    own.jobs.cancel(first)
    own.create()


def test_a_foreign_job_is_answered_exactly_like_an_unknown_one(raw: httpx2.Client, stranger: Owner) -> None:
    foreign, unknown = stranger.create().id, "ftjob-000000000000000000000000"
    for method, path in (
        ("GET", "/{id}"),
        ("POST", "/{id}/cancel"),
        ("POST", "/{id}/pause"),
        ("POST", "/{id}/resume"),
        ("GET", "/{id}/events"),
        ("GET", "/{id}/checkpoints"),
        ("GET", "?after={id}"),
    ):
        answers = [raw.request(method, "/jobs" + path.format(id=job)) for job in (foreign, unknown)]
        assert {answer.status_code for answer in answers} == {400 if "after" in path else 404}
        bodies = {answer.text.replace(foreign, "ID").replace(unknown, "ID") for answer in answers}
        assert len(bodies) == 1
    assert stranger.jobs.retrieve(foreign).status == "queued"
    stranger.jobs.cancel(foreign)


@pytest.mark.parametrize("path", ["/%00", "/%ff", "/..%2f..", "/ftjob-x%27--", "/" + "a" * 5000])
def test_hostile_ids_are_never_an_error_of_the_server(raw: httpx2.Client, path: str) -> None:
    answer = raw.get("/jobs" + path)
    assert answer.status_code in {400, 404}
    assert set(answer.json()["error"]) >= {"message", "type", "param", "code"}


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "after=nope", "metadata=x", "metadata[a]=%00"])
def test_hostile_queries_are_refused(raw: httpx2.Client, query: str) -> None:
    assert raw.get(f"/jobs?{query}").status_code == 400


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"null", b'{"model": 1}', json.dumps({"model": "x"}).encode()])
def test_bodies_that_are_no_job_are_refused(raw: httpx2.Client, body: bytes) -> None:
    assert raw.post("/jobs", content=body, headers={"content-type": "application/json"}).status_code == 400


def _refusal(owner: Owner, file: str) -> tuple[int, str]:
    with pytest.raises(openai.BadRequestError) as refused:
        owner.create(training_file=file)
    return refused.value.status_code, refused.value.response.text.replace(file, "ID")


def _empty_queue(service: Service, stage: Stage) -> None:
    """The next claim gets what this test creates."""
    service.call(stage.rows("update jobs set status = 'cancelled' where status in ('queued', 'running') returning id"))
