"""Models as tenants list and delete them, and adapters as replicas fetch them."""

import hashlib
import urllib.request
from collections.abc import Callable

import httpx2
import openai
import pytest

from service.adapters import registry, removal
from service.contracts.ids import AdapterId, ProjectId
from service.contracts.layout import adapter_prefix
from service.contracts.manifest import AdapterManifest, adapter_id_of
from service.contracts.replica import AdapterSource
from tests.service.conftest import Service
from tests.service.stage import Stage


class Trained:
    """A project with one fine-tuned model."""

    def __init__(self, service: Service, stage: Stage) -> None:
        self.project: ProjectId = service.call(stage.project())
        self.client = service.client(service.call(stage.key(self.project)))
        service.call(stage.job(self.project))
        lease = service.call(stage.claimed())
        self.manifest: AdapterManifest = service.call(stage.upload_adapter(lease))
        self.adapter_id: AdapterId = adapter_id_of(self.manifest)
        finished = service.call(stage.finish(lease, outcome="succeeded", tokens=5, adapter=self.manifest))
        self.model: str = finished.fine_tuned_model


@pytest.fixture
def trained(service: Service, stage: Stage) -> Trained:
    return Trained(service, stage)


@pytest.fixture
def fetch(service: Service) -> Callable[[str], httpx2.Response]:
    """A replica's question for an adapter."""
    headers = {"authorization": f"Bearer {service.settings.replica_token.get_secret_value()}"}
    return lambda adapter: httpx2.get(f"{service.url}/internal/adapters/{adapter}", headers=headers, timeout=30)


def test_a_project_sees_the_bases_and_its_own_models(service: Service, stage: Stage, trained: Trained) -> None:
    other = Trained(service, stage)
    models = trained.client.models.list().data
    assert [model.id for model in models] == ["weft-tiny", trained.model]
    assert {model.object for model in models} == {"model"}
    shown = trained.client.models.retrieve(trained.model)
    assert shown == models[1]
    assert shown.owned_by.startswith("acme-")
    assert trained.client.models.retrieve("weft-tiny").id == "weft-tiny"
    assert other.model not in {model.id for model in models}


def test_a_foreign_model_is_answered_like_an_unknown_one(service: Service, stage: Stage, trained: Trained) -> None:
    foreign = Trained(service, stage).model
    for call in (trained.client.models.retrieve, trained.client.models.delete):
        answers: set[str] = set()
        for name in (foreign, "ft:weft-tiny:nobody::00000000", "a/b"):
            with pytest.raises(openai.NotFoundError) as refused:
                call(name)
            assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
            answers.add(refused.value.response.text.replace(name, "NAME"))
        assert len(answers) == 1


def test_deleting_a_model_takes_its_files_and_its_source_away(
    service: Service, stage: Stage, trained: Trained, fetch: Callable[[str], httpx2.Response]
) -> None:
    assert fetch(trained.adapter_id).status_code == 200
    deleted = trained.client.models.delete(trained.model)
    assert (deleted.id, deleted.object, deleted.deleted) == (trained.model, "model", True)
    with pytest.raises(openai.NotFoundError):
        trained.client.models.retrieve(trained.model)
    with pytest.raises(openai.NotFoundError):
        trained.client.models.delete(trained.model)
    assert trained.model not in {model.id for model in trained.client.models.list()}
    gone = fetch(trained.adapter_id)
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "adapter_not_found")
    assert service.call(stage.keys(adapter_prefix(trained.project, trained.adapter_id))) == []


def test_a_base_model_cannot_be_deleted(trained: Trained) -> None:
    with pytest.raises(openai.PermissionDeniedError):
        trained.client.models.delete("weft-tiny")
    assert trained.client.models.retrieve("weft-tiny").id == "weft-tiny"


def test_an_adapter_with_another_name_keeps_its_files(service: Service, stage: Stage, trained: Trained) -> None:
    insert = """
        insert into models (name, project_id, adapter_id, job_id, kind, checkpoint_id, step, metrics)
        select 'ft:alias', project_id, adapter_id, job_id, 'checkpoint', 'ftckpt_alias', 100, '{}' from models
        where name = :name returning name
    """
    service.call(stage.rows(insert, name=trained.model))
    trained.client.models.delete(trained.model)
    prefix = adapter_prefix(trained.project, trained.adapter_id)
    assert service.call(stage.keys(prefix)) != []
    trained.client.models.delete("ft:alias")
    assert service.call(stage.keys(prefix)) == []


def test_what_a_crash_left_behind_is_swept(service: Service, stage: Stage, trained: Trained) -> None:
    async def retire_only() -> None:
        async with service.resources.database.tenant(trained.project) as session:
            assert await registry.retire(session, trained.project, trained.model) == trained.adapter_id

    service.call(retire_only())
    prefix = adapter_prefix(trained.project, trained.adapter_id)
    assert service.call(stage.keys(prefix)) != []
    service.call(removal.sweep(service.resources))
    assert service.call(stage.keys(prefix)) == []


def test_a_replica_reads_an_adapter_without_credentials(
    trained: Trained, fetch: Callable[[str], httpx2.Response]
) -> None:
    source = AdapterSource.model_validate_json(fetch(trained.adapter_id).content)
    assert source.manifest == trained.manifest
    assert adapter_id_of(source.manifest) == trained.adapter_id
    for file in source.manifest.files:
        with urllib.request.urlopen(source.urls[file.path], timeout=10) as answer:
            assert hashlib.sha256(answer.read()).hexdigest() == file.sha256


@pytest.mark.parametrize("adapter", ["0" * 64, "x", "%00", "A" * 64, "0" * 63 + "%0a"])
def test_unknown_adapters(fetch: Callable[[str], httpx2.Response], adapter: str) -> None:
    answer = fetch(adapter)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "adapter_not_found")


def test_a_tenants_key_opens_no_internal_route(service: Service, stage: Stage, trained: Trained) -> None:
    headers = {"authorization": f"Bearer {service.call(stage.key(trained.project))}"}
    source = httpx2.get(f"{service.url}/internal/adapters/{trained.adapter_id}", headers=headers)
    claim = httpx2.post(f"{service.url}/internal/leases", headers=headers, json={})
    assert (source.status_code, claim.status_code) == (401, 401)
