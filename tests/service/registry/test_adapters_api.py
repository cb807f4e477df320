"""Registered adapters and their versions, from making them to purging them."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from service.contracts.layout import adapter_prefix
from service.contracts.replica import ReplicaHeartbeat
from service.registry import sweep
from service.replicas import register
from tests.service.conftest import Service
from tests.service.registry.conftest import Owner
from tests.service.stage import Stage


@pytest.fixture
def replica(service: Service) -> Any:
    """A replica's status, as the service asks for it; None answers with an error."""
    held: dict[str, Any] = {"adapters": {}}

    class Status(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(500 if held["adapters"] is None else 200)
            self.end_headers()
            body = {"base_model": "weft-tiny", "adapters": held["adapters"], "in_flight": {}, "disk_bytes": 0}
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Status)
    threading.Thread(target=server.serve_forever).start()
    heartbeat = ReplicaHeartbeat(
        url=f"http://127.0.0.1:{server.server_port}",
        api_key="k" * 32,
        base_model="weft-tiny",
        base_fingerprint="f" * 64,
        state="ready",
        max_loras=4,
        max_lora_rank=64,
        context_length=1024,
    )

    async def announce() -> None:
        async with service.resources.database.control() as session:
            await register.announce(session, "r1", heartbeat)

    async def leave() -> None:
        async with service.resources.database.control() as session:
            await register.leave(session, "r1")

    service.call(announce())
    yield held
    service.call(leave())
    server.shutdown()
    server.server_close()


def test_the_first_version_is_the_default(owner: Owner) -> None:
    job, model = owner.trained(loss=0.25, seed=7)
    made = owner.ask("POST", "/adapters", json={"name": "bot", "from": {"type": "job", "job_id": job}})
    assert made["object"] == "adapter"
    assert (made["base_model"], made["latest_version"], made["aliases"]) == ("weft-tiny", 1, {"default": 1})
    version = owner.ask("GET", "/adapters/bot/versions/v1")
    assert version["model"] == "bot@v1"
    assert version["source"] == {"type": "job", "id": job}
    assert version["evaluation"] == {"step": 100, "train_loss": 0.5, "full_valid_loss": 0.25}
    assert owner.route("bot") == owner.route("bot@default")
    share = owner.route("bot@v1").shares[0]  # type: ignore[union-attr]
    assert (share.artifact, share.base, share.weight) == (version["sha256"], "weft-tiny", 1.0)
    assert owner.ask("GET", "/adapters/bot/versions/1") == version
    listed = [each["id"] for each in owner.ask("GET", "/models")["data"]]
    assert listed[-2:] == [model, "bot"]
    assert owner.ask("GET", "/models/bot@v1")["id"] == "bot@v1"


def test_a_second_version_changes_nothing_by_itself(owner: Owner) -> None:
    _, second = owner.registered("bot", 2)
    assert owner.served("bot") == {1: 1.0}
    assert owner.served("bot@v2") == {2: 1.0}
    versions = owner.ask("GET", "/adapters/bot/versions")
    assert [each["version"] for each in versions["data"]] == [2, 1]
    assert versions["data"][0]["source"] == {"type": "model", "id": second}
    page = owner.ask("GET", "/adapters/bot/versions", params={"limit": 1, "order": "asc"})
    assert [each["version"] for each in page["data"]] == [1]
    assert page["has_more"]
    after = owner.ask("GET", "/adapters/bot/versions", params={"after": page["last_id"], "order": "asc"})
    assert [each["version"] for each in after["data"]] == [2]


def test_provenance_says_what_it_was_made_of(owner: Owner) -> None:
    job, _ = owner.trained(loss=0.25, seed=7)
    owner.ask("POST", "/adapters", json={"name": "bot", "from": {"type": "job", "job_id": job}})
    told = owner.ask("GET", "/adapters/bot/versions/1/provenance")
    shown = owner.ask("GET", f"/fine_tuning/jobs/{job}")
    file = owner.ask("GET", f"/files/{shown['training_file']}")
    assert told["job"]["id"] == job
    assert told["job"]["seed"] == 7
    assert told["job"]["hyperparameters"] == shown["method"]["supervised"]["hyperparameters"]
    assert told["job"]["hyperparameter_rules"] == shown["hyperparameter_rules"]
    assert told["training_file"]["id"] == file["id"]
    assert told["training_file"]["bytes"] == file["bytes"]
    assert len(told["training_file"]["sha256"]) == 64
    assert told["base_fingerprint"] == "f" * 64
    assert told["chat_template_sha256"] == "c" * 64
    assert {each["path"] for each in told["files"]} == {"adapter_config.json", "adapter_model.safetensors"}
    assert told["import"] is None


def test_a_job_that_names_an_adapter_makes_its_next_version(service: Service, stage: Stage, owner: Owner) -> None:
    for number in (1, 2):
        job, _ = owner.trained(adapter="bot")
        assert owner.ask("GET", f"/fine_tuning/jobs/{job}")["adapter"] == "bot"
        assert f"New version of adapter 'bot': v{number}" in service.call(stage.messages(job))
        version = owner.ask("GET", f"/adapters/bot/versions/{number}")
        assert version["source"] == {"type": "job", "id": job}
    assert owner.served("bot") == {1: 1.0}


def test_a_job_whose_adapter_is_gone_still_succeeds(service: Service, stage: Stage, owner: Owner) -> None:
    owner.registered("bot")
    job = service.call(stage.job(owner.project, adapter="bot"))
    owner.ask("DELETE", "/adapters/bot")
    finished = service.call(stage.succeed(service.call(stage.claimed())))
    assert finished.status == "succeeded"
    assert finished.fine_tuned_model
    told = [message for message in service.call(stage.messages(job)) if "was not added" in message]
    assert len(told) == 1
    assert "restore it" in told[0]
    owner.ask("POST", "/adapters/bot/restore")
    assert [each["version"] for each in owner.ask("GET", "/adapters/bot/versions")["data"]] == [1]


def test_a_job_for_an_impossible_adapter_is_refused_at_once(service: Service, stage: Stage, owner: Owner) -> None:
    owner.registered("bot")
    owner.ask("DELETE", "/adapters/bot")
    body = {"model": "weft-tiny", "training_file": service.call(stage.file(owner.project))}
    assert owner.refused("POST", "/fine_tuning/jobs", 409, json={**body, "adapter": "bot"}) == "adapter_deleted"
    for name in ("Bot", "ftjob-bot", "weft-tiny", "exports", "a@b"):
        assert owner.refused("POST", "/fine_tuning/jobs", 400, json={**body, "adapter": name})
        assert owner.refused("POST", "/adapters", 400, json={"name": name})


def test_a_version_is_trained_further_under_its_own_name(service: Service, stage: Stage, owner: Owner) -> None:
    owner.registered("bot", 2)
    owner.ask("PUT", "/adapters/bot/aliases/prod", json={"version": 2})
    job = service.call(stage.job(owner.project, model="bot@prod"))
    row = service.call(stage.row(job))
    assert row.start_model == "bot@v2"
    assert row.start_adapter == owner.ask("GET", "/adapters/bot/versions/2")["sha256"]
    owner.ask("POST", f"/fine_tuning/jobs/{job}/cancel")


def test_a_checkpoint_of_a_running_job_can_be_a_version(service: Service, stage: Stage, owner: Owner) -> None:
    job = service.call(stage.job(owner.project))
    lease = service.call(stage.claimed())
    service.call(stage.checkpoint_model(lease, step=5, loss=0.5))
    (checkpoint,) = owner.ask("GET", f"/fine_tuning/jobs/{job}/checkpoints")["data"]
    source = {"type": "checkpoint", "checkpoint_id": checkpoint["id"]}
    owner.ask("POST", "/adapters", json={"name": "bot", "from": source})
    assert owner.ask("GET", "/adapters/bot/versions/1")["evaluation"]["full_valid_loss"] == 0.5
    assert owner.refused("POST", "/adapters", 409, json={"name": "x", "from": {"type": "job", "job_id": job}}) == (
        "job_not_succeeded"
    )
    assert owner.refused("GET", "/adapters/x", 404) == "adapter_not_found"
    service.call(stage.finish(lease, outcome="cancelled"))


def test_names_are_taken_once_and_a_repeat_gets_the_first_answer(owner: Owner) -> None:
    body = {"name": "bot", "description": "Answers.", "metadata": {"team": "a"}}
    headers = {"idempotency-key": "once"}
    first = owner.ask("POST", "/adapters", json=body, headers=headers)
    assert owner.ask("POST", "/adapters", json=body, headers=headers) == first
    assert (first["base_model"], first["latest_version"]) == (None, None)
    assert owner.refused("POST", "/adapters", 409, json=body) == "adapter_exists"
    assert owner.route("bot") is None
    assert "bot" not in {each["id"] for each in owner.ask("GET", "/models")["data"]}
    changed = owner.ask("PATCH", "/adapters/bot", json={"description": None})
    assert (changed["description"], changed["metadata"]) == (None, {"team": "a"})
    assert owner.ask("PATCH", "/adapters/bot", json={"metadata": {"a": "b"}})["metadata"] == {"a": "b"}


def test_a_version_in_use_stays_and_a_deleted_number_never_comes_back(
    service: Service, stage: Stage, owner: Owner
) -> None:
    models = owner.registered("bot", 2)
    assert owner.refused("DELETE", "/adapters/bot/versions/1", 409) == "version_in_use"
    split = {"version": 1, "traffic": [{"version": 1, "weight": 9}, {"version": 2, "weight": 1}]}
    owner.ask("PUT", "/adapters/bot/aliases/canary", json=split)
    assert owner.refused("DELETE", "/adapters/bot/versions/2", 409) == "version_in_use"
    owner.ask("PUT", "/adapters/bot/aliases/canary", json={"version": 1, "shadow": {"version": 2, "fraction": 0.5}})
    assert owner.refused("DELETE", "/adapters/bot/versions/2", 409) == "version_in_use"
    owner.ask("DELETE", "/adapters/bot/aliases/canary")
    assert owner.ask("DELETE", "/adapters/bot/versions/v2")["deleted"]
    assert owner.refused("GET", "/adapters/bot/versions/2", 404) == "version_not_found"
    assert owner.route("bot@v2") is None
    # Its model has a name of its own still.
    assert owner.ask("GET", f"/models/{models[1]}")["id"] == models[1]
    owner.ask("POST", "/adapters/bot/versions", json={"source": {"type": "model", "model": models[1]}})
    assert [each["version"] for each in owner.ask("GET", "/adapters/bot/versions")["data"]] == [3, 1]


def test_a_version_keeps_the_files_when_its_model_is_deleted(service: Service, stage: Stage, owner: Owner) -> None:
    (model,) = owner.registered("bot")
    prefix = adapter_prefix(owner.project, owner.ask("GET", "/adapters/bot/versions/1")["sha256"])
    owner.ask("DELETE", f"/models/{model}")
    assert owner.served("bot") == {1: 1.0}
    assert service.call(stage.keys(prefix))
    assert owner.refused("DELETE", "/models/bot", 403) == "registered_adapter"
    owner.ask("DELETE", "/adapters/bot/aliases/default")
    owner.ask("DELETE", "/adapters/bot/versions/1")
    assert service.call(stage.keys(prefix)) == []
    # What is gone cannot be registered again.
    job = service.call(stage.rows("select job_id from adapters where id = :a", a=prefix.split("/")[-2]))[0].job_id
    again = {"source": {"type": "job", "job_id": job}}
    assert owner.refused("POST", "/adapters/bot/versions", 400, json=again) == "adapter_files_deleted"


def test_a_deleted_adapter_comes_back_as_it_was(owner: Owner) -> None:
    owner.registered("bot", 2)
    owner.ask("PUT", "/adapters/bot/aliases/prod", json={"version": 2})
    before = owner.ask("GET", "/adapters/bot")
    gone = owner.ask("DELETE", "/adapters/bot")
    assert gone["purged_at"] > before["created_at"] + 29 * 86400
    assert owner.route("bot@prod") is None
    assert owner.refused("GET", "/adapters/bot", 404) == "adapter_not_found"
    assert owner.refused("PUT", "/adapters/bot/aliases/prod", 404, json={"version": 1}) == "adapter_not_found"
    assert owner.refused("POST", "/adapters", 409, json={"name": "bot"}) == "adapter_deleted"
    assert owner.ask("GET", "/adapters")["data"] == []
    (kept,) = owner.ask("GET", "/adapters", params={"include_deleted": True})["data"]
    assert kept["deleted_at"] is not None
    assert owner.ask("POST", "/adapters/bot/restore") == before
    assert owner.ask("POST", "/adapters/bot/restore") == before
    assert owner.served("bot@prod") == {2: 1.0}


def test_what_is_purged_is_gone_and_its_name_free(service: Service, stage: Stage, owner: Owner) -> None:
    kept, lost = owner.registered("bot", 2)
    owner.ask("PUT", "/adapters/bot/aliases/prod", json={"version": 2})
    artifact = owner.ask("GET", "/adapters/bot/versions/2")["sha256"]
    owner.ask("DELETE", f"/models/{lost}")
    owner.ask("DELETE", "/adapters/bot")
    assert service.call(sweep.sweep(service.resources)) == 0
    past = "update registered_adapters set deleted_at = now() - interval '31 days' where project_id = :p returning id"
    service.call(stage.rows(past, p=owner.project))
    assert service.call(sweep.sweep(service.resources)) == 1
    assert service.call(sweep.sweep(service.resources)) == 0
    assert service.call(stage.keys(adapter_prefix(owner.project, artifact))) == []
    assert owner.refused("POST", "/adapters/bot/restore", 404) == "adapter_not_found"
    assert owner.ask("GET", f"/models/{kept}")["id"] == kept
    assert owner.ask("POST", "/adapters", json={"name": "bot"})["latest_version"] is None


def test_warm_and_pin(service: Service, stage: Stage, owner: Owner) -> None:
    owner.registered("bot", 2)
    asked = "select number from adapter_versions where warm_requested_at is not null and project_id = :p"
    owner.ask("POST", "/adapters/bot/versions/2/warm")
    assert [row.number for row in service.call(stage.rows(asked, p=owner.project))] == [2]
    assert owner.ask("POST", "/adapters/bot/versions/1/pin")["pinned"]
    assert owner.ask("POST", "/adapters/bot/versions/1/pin")["pinned"]
    assert not owner.ask("DELETE", "/adapters/bot/versions/1/pin")["pinned"]
    model = owner.ask("GET", "/adapters/bot/versions/1")["source"]["id"]
    for _ in range(service.settings.max_pinned_versions):
        version = owner.ask("POST", "/adapters/bot/versions", json={"source": {"type": "model", "model": model}})
        owner.ask("POST", f"/adapters/bot/versions/{version['version']}/pin")
    assert owner.refused("POST", "/adapters/bot/versions/2/pin", 409) == "too_many_pins"


def test_residency_is_told_for_each_replica(service: Service, owner: Owner, replica: dict[str, Any]) -> None:
    owner.registered("bot", 2)
    artifact = owner.ask("GET", "/adapters/bot/versions/2")["sha256"]
    replica["adapters"] = {artifact: "gpu"}
    second, first = owner.ask("GET", "/adapters/bot/residency")["data"]
    assert second["replicas"] == [{"replica": "r1", "tier": "gpu"}]
    assert first["replicas"] == []
    replica["adapters"] = None
    second, _ = owner.ask("GET", "/adapters/bot/residency")["data"]
    assert second["replicas"] == []


def test_a_key_needs_the_scope(service: Service, stage: Stage, owners: Callable[[], Owner]) -> None:
    owner = owners()
    owner.ask("POST", "/adapters", json={"name": "bot"})
    limit = "update api_keys set scopes = '[\"api.model.read\"]' where project_id = :p returning id"
    service.call(stage.rows(limit, p=owner.project))
    service.app.state.keys.forget()
    assert owner.ask("GET", "/adapters/bot")["name"] == "bot"
    assert owner.refused("POST", "/adapters/bot/restore", 403) == "insufficient_permissions"
