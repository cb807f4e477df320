"""Importing adapters: what is asked, what a worker may say, and what becomes of it when workers die."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from service.contracts.layout import adapter_prefix
from service.contracts.manifest import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_id_of
from service.transfers import sweep
from service.transfers.buckets import store_of
from tests.conftest import wait_until
from tests.service.conftest import Service
from tests.service.transfers.conftest import BUCKET, CONFIG, WEIGHTS, Owner, Worker, fetched

Change = Callable[..., None]


def test_a_worker_gets_the_files_and_what_it_makes_of_them_is_a_version(owner: Owner, worker: Worker) -> None:
    begun = owner.begin("brought")
    assert (begun["object"], begun["status"], begun["adapter"], begun["version"]) == (
        "adapter.import", "queued", "brought", None,
    )  # fmt: skip
    assert worker.claim(204, base_fingerprint="0" * 64) is None
    lease = worker.claimed(begun)
    files = lease["work"]["files"]
    assert (fetched(files[ADAPTER_CONFIG]["url"]), fetched(files[ADAPTER_WEIGHTS]["url"])) == (CONFIG, WEIGHTS)
    assert files[ADAPTER_WEIGHTS]["size"] == len(WEIGHTS)
    assert owner.state(begun)["status"] == "running"
    assert worker.call(f"/{lease['id']}/renew", epoch=lease["epoch"])["ttl_seconds"] == 600
    manifest = worker.manifest(lease)
    worker.store(lease, manifest)
    finish = {"adapter": manifest.model_dump(mode="json"), "changes": ["renamed"]}
    assert worker.finish(lease, "succeeded", **finish) == {"status": "succeeded"}
    assert worker.finish(lease, "succeeded", **finish) == {"status": "succeeded"}, "a repeated call"
    done = owner.state(begun)
    assert (done["status"], done["version"], done["model"], done["changes"]) == (
        "succeeded", 1, "brought@v1", ["renamed"],
    )  # fmt: skip
    version = owner.ask("GET", "/adapters/brought/versions/v1")
    assert (version["sha256"], version["source"]) == (adapter_id_of(manifest), {"type": "import", "id": begun["id"]})
    assert (version["rank"], version["alpha"]) == (4, 8.0)
    assert owner.ask("GET", "/models/brought")["id"]
    provenance = owner.ask("GET", "/adapters/brought/versions/1/provenance")
    assert provenance["import"]["id"] == begun["id"]


def test_a_second_import_under_a_name_is_its_next_version(owner: Owner, worker: Worker) -> None:
    assert worker.imported(owner, "twice")["version"] == 1
    assert worker.imported(owner, "twice", b"other weights")["version"] == 2
    listed = owner.ask("GET", "/adapters/imports", params={"limit": 1})
    assert (listed["data"][0]["version"], listed["has_more"]) == (2, True)
    rest = owner.ask("GET", "/adapters/imports", params={"after": listed["last_id"]})
    assert [each["version"] for each in rest["data"]] == [1]


def test_repeating_the_request_with_its_key_begins_nothing_new(owner: Owner, worker: Worker) -> None:
    asked = {"json": {"adapter": "once", "files": owner.files()}, "headers": {"idempotency-key": "brought-once"}}
    first, second = (owner.ask("POST", "/adapters/imports", **asked) for _ in range(2))
    assert first["id"] == second["id"]
    worker.finish(worker.claimed(first), "failed", failure={"code": "adapter_invalid", "message": "It is no adapter."})
    assert owner.state(first)["error"] == {"code": "adapter_invalid", "message": "It is no adapter."}


def test_a_lost_worker_is_fenced_off_and_after_three_the_import_fails(
    service: Service, owner: Owner, worker: Worker, change: Change
) -> None:
    begun = owner.begin("lost")
    first = worker.claimed(begun)
    manifest = worker.manifest(first)
    worker.store(first, manifest)
    for _ in range(3):
        change(begun, "lease_until = now() - interval '1 second'")
        wait_until(lambda: owner.state(begun)["status"] != "running", what="the lease taken back")
        if owner.state(begun)["status"] == "queued":
            change(begun, "not_before = now()")
            lease = worker.claimed(begun)
            assert lease["epoch"] > first["epoch"]
            late = worker.finish(first, "succeeded", 409, adapter=manifest.model_dump(mode="json"))
            assert late["error"]["code"] == "lease_lost"
    done = owner.state(begun)
    assert (done["status"], done["error"]["code"]) == ("failed", "worker_lost")
    # What the first worker stored is nobody's, and goes once its URLs have run out.
    prefix = adapter_prefix(owner.project, adapter_id_of(manifest))
    store = service.resources.store
    assert service.call(asyncio.to_thread(store.keys, prefix))
    change(begun, "finished_at = now() - interval '1 hour'")
    service.call(sweep.sweep(service.resources))
    assert not service.call(asyncio.to_thread(store.keys, prefix))


def test_a_worker_that_gives_it_back_costs_nothing_and_a_broken_one_counts(
    owner: Owner, worker: Worker, change: Change
) -> None:
    begun = owner.begin("handed-back")
    for _ in range(4):
        assert worker.finish(worker.claimed(begun), "released") == {"status": "queued"}
    for status in ("queued", "queued", "failed"):
        change(begun, "not_before = now()")
        failure = {"code": "worker_failed", "message": "The disk is full."}
        assert worker.finish(worker.claimed(begun), "broken", failure=failure) == {"status": status}
    assert "The disk is full." in owner.state(begun)["error"]["message"]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"job_id": "adimp-another"}, "adapter_mismatch"),
        ({"base_fingerprint": "0" * 64}, "adapter_mismatch"),
        ({"rank": 65}, "adapter_mismatch"),
        ({"alpha": 4 * 64.5}, "adapter_mismatch"),
        ({"step": 1}, "adapter_mismatch"),
        ({"files": ()}, "invalid_request"),
    ],
)
def test_a_worker_cannot_publish_what_was_not_asked_for(
    owner: Owner, worker: Worker, changes: dict[str, Any], code: str
) -> None:
    lease = worker.claimed(owner.begin("strict"))
    wrong = worker.manifest(lease, **changes).model_dump(mode="json")
    for refused in (
        worker.call(f"/{lease['id']}/uploads", 400, epoch=lease["epoch"], adapter=wrong),
        worker.finish(lease, "succeeded", 400, adapter=wrong),
    ):
        assert refused["error"]["code"] == code
    worker.finish(lease, "failed", failure={"code": "x", "message": "x"})


def test_what_is_not_stored_whole_is_not_published(owner: Owner, worker: Worker) -> None:
    begun = owner.begin("torn")
    lease = worker.claimed(begun)
    manifest = worker.manifest(lease)
    worker.store(lease, manifest, b"other")
    refused = worker.finish(lease, "succeeded", 400, adapter=manifest.model_dump(mode="json"))
    assert refused["error"]["code"] == "upload_incomplete"
    assert owner.state(begun)["status"] == "running"
    worker.finish(lease, "failed", failure={"code": "x", "message": "x"})


def test_a_name_deleted_meanwhile_fails_the_import_with_the_reason(owner: Owner, worker: Worker) -> None:
    worker.imported(owner, "gone")
    begun = owner.begin("gone")
    owner.ask("DELETE", "/adapters/gone")
    lease = worker.claimed(begun)
    manifest = worker.manifest(lease, b"newer")
    worker.store(lease, manifest, b"newer")
    assert worker.finish(lease, "succeeded", adapter=manifest.model_dump(mode="json")) == {"status": "failed"}
    assert owner.state(begun)["error"]["code"] == "adapter_deleted"


def test_files_must_be_the_callers_own_of_the_right_purpose_and_size(
    service: Service, owner: Owner, stranger: Owner
) -> None:
    files, foreign = owner.files(), stranger.files()

    def code(**changes: Any) -> str:
        return owner.refused("POST", "/adapters/imports", 400, json={"adapter": "mine", "files": files, **changes})

    assert code(files={**files, ADAPTER_CONFIG: foreign[ADAPTER_CONFIG]}) == "file_not_found"
    unknown = {**files, ADAPTER_CONFIG: "file-" + "0" * 24}
    assert code(files=unknown) == "file_not_found"
    assert code(files={**files, ADAPTER_CONFIG: owner.file(b"{}", "assistants")}) == "invalid_file_purpose"
    assert code(files={**files, ADAPTER_CONFIG: owner.file(b" " * (1 << 20) + b"{}")}) == "invalid_adapter_size"
    assert code(adapter="imports") == "name_taken"
    assert code(adapter="Upper Case") == "invalid_adapter_name"
    assert code(base_model="gpt-9") == "base_model_not_found"
    assert code(source="s3://x/y") == code(files=None) == "invalid_request"


def test_another_projects_import_is_as_unknown_as_one_that_never_was(
    owner: Owner, stranger: Owner, worker: Worker
) -> None:
    begun = owner.begin("hidden")
    foreign = stranger.ask("GET", f"/adapters/imports/{begun['id']}", 404)["error"]
    missing = "adimp-" + "0" * 24
    unknown = stranger.ask("GET", f"/adapters/imports/{missing}", 404)["error"]
    assert foreign == {**unknown, "message": unknown["message"].replace(missing, begun["id"])}
    assert stranger.ask("GET", "/adapters/imports")["data"] == []
    assert stranger.refused("GET", "/adapters/imports", 400, params={"after": begun["id"]}) == "invalid_request"
    worker.finish(worker.claimed(begun), "failed", failure={"code": "x", "message": "x"})


def test_a_project_may_have_only_so_many_open(owner: Owner, worker: Worker) -> None:
    files = owner.files()
    asked = {"json": {"adapter": "many", "files": files}}
    begun = [owner.ask("POST", "/adapters/imports", **asked) for _ in range(4)]
    assert owner.refused("POST", "/adapters/imports", 429, **asked) == "too_many_transfers"
    for each in begun:
        worker.finish(worker.claimed(each), "failed", failure={"code": "x", "message": "x"})
    again = owner.ask("POST", "/adapters/imports", **asked)
    worker.finish(worker.claimed(again), "failed", failure={"code": "x", "message": "x"})


def test_adapters_come_from_a_bucket_only_out_of_places_that_are_allowed(
    service: Service, owner: Owner, stranger: Owner, worker: Worker
) -> None:
    store = store_of(service.settings.store, BUCKET)
    store.ensure_bucket()
    for name, body in ((ADAPTER_CONFIG, CONFIG), (ADAPTER_WEIGHTS, WEIGHTS)):
        store.put(f"{owner.project}/support/{name}", body)

    def code(source: str, who: Owner = owner) -> str:
        return who.refused("POST", "/adapters/imports", 400, json={"adapter": "bucket", "source": source})

    own = f"s3://{BUCKET}/{owner.project}"
    assert code(f"{own}/support", stranger) == "source_not_allowed"
    assert code(f"{own}/nothing") == "source_missing"
    for source in (
        f"s3://{BUCKET}/{stranger.project}/../{owner.project}/support",
        f"s3://{BUCKET}/{owner.project}x/support",
        f"s3://{BUCKET}",
        f"s3://{service.settings.store.bucket}/t/{owner.project}/files",
        "s3://elsewhere/support",
        "shared-weights/public",
        "http://127.0.0.1/",
    ):
        assert code(source) == "source_not_allowed", source
    begun = owner.ask("POST", "/adapters/imports", json={"adapter": "bucket", "source": f"{own}/support/"})
    files = worker.claimed(begun)["work"]["files"]
    assert (files[ADAPTER_WEIGHTS]["sha256"], files[ADAPTER_WEIGHTS]["size"]) == (None, len(WEIGHTS))
    assert fetched(files[ADAPTER_WEIGHTS]["url"]) == WEIGHTS
