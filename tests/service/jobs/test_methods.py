"""Methods of training through the stock SDK: what each takes, which files it wants, and how it is shown."""

import io
import json
from typing import Any

import openai
import pytest
from openai.types.fine_tuning import FineTuningJob

from service.contracts.ids import ProjectId
from service.contracts.job import JobSpec
from tests.service.conftest import Service
from tests.service.stage import Stage

USER = {"role": "user", "content": "Hi"}
ANSWERS = [{"role": "assistant", "content": text} for text in ("Hello", "What?")]
LINES: dict[str, dict[str, Any]] = {
    "chat": {"messages": [USER, ANSWERS[0]]},
    "completion": {"prompt": "Hi", "completion": " there"},
    "preference": {
        "input": {"messages": [USER]},
        "preferred_output": ANSWERS[:1],
        "non_preferred_output": ANSWERS[1:],
    },
}
DPO: dict[str, Any] = {"type": "dpo"}


class Owner:
    """A project with a file of each format, uploaded by the SDK's client."""

    def __init__(self, service: Service, stage: Stage) -> None:
        self.project: ProjectId = service.call(stage.project())
        self.client = service.client(service.call(stage.key(self.project)))
        self.files = {name: self.upload(name) for name in LINES}

    def upload(self, name: str) -> str:
        lines = json.dumps(LINES[name]) + "\n"
        file = io.BytesIO(lines.encode() * 12)
        return self.client.files.create(file=(f"{name}.jsonl", file), purpose="fine-tune").id

    def create(self, training: str, **body: Any) -> FineTuningJob:
        return self.client.fine_tuning.jobs.create(model="weft-tiny", training_file=self.files[training], **body)


@pytest.fixture(scope="module")
def owner(service: Service, stage: Stage) -> Owner:
    return Owner(service, stage)


def supervised(**hyperparameters: Any) -> Any:
    return {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}


def dpo(**hyperparameters: Any) -> Any:
    return {"type": "dpo", "dpo": {"hyperparameters": hyperparameters}}


def test_a_dpo_job_has_openais_shape(service: Service, stage: Stage, owner: Owner) -> None:
    job = owner.create("preference", method=dpo(beta=0.5, batch_size=2, n_epochs="auto"))
    FineTuningJob.model_validate(job.to_dict())
    assert job.method is not None
    assert (job.method.type, job.method.supervised) == ("dpo", None)
    assert job.method.dpo is not None
    chosen = job.method.dpo.hyperparameters
    assert chosen is not None
    assert (chosen.beta, chosen.batch_size, chosen.n_epochs) == (0.5, 2, 8)
    assert job.to_dict()["hyperparameters"] == {}, "the top level is for supervised jobs"
    rules = job.to_dict()["hyperparameter_rules"]
    assert isinstance(rules, dict)
    assert set(rules) == set(chosen.to_dict())
    spec = JobSpec.model_validate(service.call(stage.row(job.id)).spec)
    assert (spec.method, spec.examples, spec.hyperparameters.beta) == ("dpo", 12, 0.5)
    assert owner.client.fine_tuning.jobs.retrieve(job.id) == job


def test_dpo_alone_takes_its_defaults(owner: Owner) -> None:
    plain = owner.create("chat").to_dict()["method"]["supervised"]["hyperparameters"]  # type: ignore[index]
    chosen = owner.create("preference", method=DPO).to_dict()["method"]["dpo"]["hyperparameters"]  # type: ignore[index]
    assert chosen["beta"] == 0.1
    assert chosen["learning_rate"] == pytest.approx(plain["learning_rate"] / 10)
    assert (plain["beta"], plain["packing"], plain["early_stopping"]) == (None, False, None)


def test_early_stopping_and_packing_are_shown_resolved(owner: Owner) -> None:
    validation = owner.upload("chat")
    auto = owner.create("chat", validation_file=validation, method=supervised(packing=True))
    shown = auto.to_dict()["method"]["supervised"]["hyperparameters"]  # type: ignore[index]
    assert (shown["packing"], shown["early_stopping"]) == (True, {"patience": 2, "min_delta": 0.005})
    own = owner.create("chat", validation_file=validation, method=supervised(early_stopping={"patience": 4}))
    shown = own.to_dict()["method"]["supervised"]["hyperparameters"]  # type: ignore[index]
    assert shown["early_stopping"] == {"patience": 4, "min_delta": 0.005}
    off = owner.create("chat", validation_file=validation, method=supervised(early_stopping=False))
    assert off.to_dict()["method"]["supervised"]["hyperparameters"]["early_stopping"] is None  # type: ignore[index]


@pytest.mark.parametrize(
    ("method", "param"),
    [
        (supervised(beta=0.1), "beta"),
        (dpo(beta=0), "method.dpo.hyperparameters.beta"),
        (dpo(beta=2.1), "method.dpo.hyperparameters.beta"),
        (dpo(beta="high"), "method.dpo.hyperparameters.beta"),
        (dpo(packing=True), "packing"),
        (supervised(packing="yes"), "method.supervised.hyperparameters.packing"),
        (supervised(early_stopping=True), "early_stopping"),
        (supervised(early_stopping={"patience": 1}), "early_stopping"),
        (supervised(early_stopping="yes"), "method.supervised.hyperparameters.early_stopping"),
        (supervised(early_stopping={"patience": 0}), "method.supervised.hyperparameters.early_stopping"),
        (supervised(early_stopping={"patience": "2"}), "method.supervised.hyperparameters.early_stopping"),
        (supervised(early_stopping={"min_delta": 1}), "method.supervised.hyperparameters.early_stopping"),
        (supervised(early_stopping={"steps": 5}), "method.supervised.hyperparameters.early_stopping"),
    ],
)
def test_contradictions_are_refused_by_name(owner: Owner, method: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        owner.create("preference" if method["type"] == "dpo" else "chat", method=method)
    assert refused.value.param == param
    assert "\n" not in refused.value.message


@pytest.mark.parametrize(
    ("method", "training", "validation", "code", "named"),
    [
        ("supervised", "preference", None, "invalid_training_file", "preference"),
        ("supervised", "chat", "preference", "invalid_validation_file", "preference"),
        ("dpo", "chat", None, "invalid_training_file", "chat"),
        ("dpo", "completion", None, "invalid_training_file", "completion"),
        ("dpo", "preference", "chat", "invalid_validation_file", "chat"),
    ],
)
def test_files_must_be_of_the_methods_format(
    owner: Owner, method: Any, training: str, validation: str | None, code: str, named: str
) -> None:
    files = {"validation_file": owner.files[validation]} if validation else {}
    with pytest.raises(openai.BadRequestError) as refused:
        owner.create(training, method={"type": method}, **files)
    file = owner.files[validation or training]
    assert (refused.value.code, refused.value.param) == (code, "validation_file" if validation else "training_file")
    assert f"File '{file}' holds {named} examples, but method '{method}' takes" in refused.value.message


def test_files_of_the_methods_formats_are_taken(owner: Owner) -> None:
    assert owner.create("chat", validation_file=owner.files["completion"]).status == "queued"
    second = owner.upload("preference")
    assert owner.create("preference", validation_file=second, method=DPO).status == "queued"


def test_a_file_of_before_formats_were_noted_is_supervised(service: Service, stage: Stage, owner: Owner) -> None:
    old = service.call(stage.file(owner.project))
    jobs = owner.client.fine_tuning.jobs
    assert jobs.create(model="weft-tiny", training_file=old).status == "queued"
    with pytest.raises(openai.BadRequestError, match="chat or completion examples"):
        jobs.create(model="weft-tiny", training_file=old, method=DPO)  # type: ignore[arg-type]
