"""Exporting versions: the adapter's own files at once, whole weights when a worker has made them, gone in time."""

import asyncio
import dataclasses
import hashlib
import json
from collections.abc import Callable
from typing import Any

from service.contracts.manifest import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from service.transfers import exports, sweep
from tests.conftest import wait_until
from tests.service.conftest import Service
from tests.service.transfers.conftest import Owner, Worker, listed, put
from tests.service.weights import lora_file

Change = Callable[..., None]
MERGED = {"config.json": b"{}", "model-00001-of-00001.safetensors": b"whole weights" * 1000}


def read(owner: Owner, export: dict[str, Any]) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for file in export["files"]:
        answer = owner.http.get(f"/adapters/exports/{export['id']}/files/{file['path']}")
        assert answer.status_code == 200, answer.text
        files[file["path"]] = answer.content
        assert (len(answer.content), hashlib.sha256(answer.content).hexdigest()) == (file["bytes"], file["sha256"])
    return files


def test_an_adapters_own_files_are_there_at_once(owner: Owner, worker: Worker) -> None:
    worker.imported(owner, "take", b"the very weights")
    export = owner.ask("POST", "/adapters/take/versions/v1/exports", json={"format": "peft"})
    assert (export["object"], export["status"], export["format"], export["version"]) == (
        "adapter.export", "succeeded", "peft", 1,
    )  # fmt: skip
    assert export["expires_at"] == owner.state(export)["expires_at"]
    files = read(owner, export)
    assert files.keys() == {ADAPTER_CONFIG, ADAPTER_WEIGHTS}
    assert files[ADAPTER_WEIGHTS] == lora_file(b"the very weights")
    config = json.loads(files[ADAPTER_CONFIG])
    assert config["base_model_name_or_path"] == "weft-tiny", "not where the worker has it"
    assert config["r"] == 4


def test_a_base_of_the_hub_is_named_as_the_hub_does(service: Service, owner: Owner, worker: Worker) -> None:
    base = service.settings.base_models[0].model_copy(update={"source": "acme/tiny-1b"})
    settings = service.settings.model_copy(update={"base_models": (base,)})
    worker.imported(owner, "hub")
    resources = dataclasses.replace(service.resources, settings=settings)
    found = service.call(exports.exportable(resources, owner.project, "hub", 1))
    assert json.loads(found.config)["base_model_name_or_path"] == "acme/tiny-1b"


def test_a_merged_export_is_made_by_a_worker_and_read_until_it_expires(
    service: Service, owner: Owner, worker: Worker, change: Change
) -> None:
    worker.imported(owner, "whole")
    export = owner.ask("POST", "/adapters/whole/versions/1/exports", json={"format": "merged"})
    assert (export["status"], export["files"], export["expires_at"]) == ("queued", [], None)
    assert owner.refused("GET", f"/adapters/exports/{export['id']}/files/config.json", 400) == "export_not_ready"
    lease = worker.claimed(export)
    assert lease["work"]["adapter"]["urls"].keys() == {ADAPTER_CONFIG, ADAPTER_WEIGHTS}
    files = [file.model_dump(mode="json") for file in listed(MERGED)]
    put(worker.call(f"/{lease['id']}/uploads", epoch=lease["epoch"], files=files)["urls"], MERGED)
    wrong = [{**files[0], "size": 3}, files[1]]
    assert worker.finish(lease, "succeeded", 400, files=wrong)["error"]["code"] == "upload_incomplete"
    assert worker.finish(lease, "succeeded", files=files) == {"status": "succeeded"}
    done = owner.state(export)
    assert read(owner, done) == MERGED
    change(export, "expires_at = now()")
    assert (owner.state(export)["status"], owner.state(export)["files"]) == ("expired", [])
    path = f"/adapters/exports/{export['id']}/files/config.json"
    assert owner.refused("GET", path, 404) == "exported_file_not_found"
    keys = asyncio.to_thread(service.resources.store.keys, f"t/{owner.project}/exports/")
    assert service.call(keys)
    change(export, "expires_at = now() - interval '1 day', finished_at = now() - interval '1 day'")
    service.call(sweep.sweep(service.resources))
    assert not service.call(asyncio.to_thread(service.resources.store.keys, f"t/{owner.project}/exports/"))


def test_a_merge_whose_worker_dies_is_done_by_the_next_one(owner: Owner, worker: Worker, change: Change) -> None:
    worker.imported(owner, "again")
    export = owner.ask("POST", "/adapters/again/versions/1/exports", json={"format": "merged"})
    first = worker.claimed(export)
    change(export, "lease_until = now() - interval '1 second'")
    wait_until(lambda: owner.state(export)["status"] == "queued", what="the lease taken back")
    second = worker.claimed(export)
    files = [file.model_dump(mode="json") for file in listed(MERGED)]
    assert worker.call(f"/{first['id']}/uploads", 409, epoch=first["epoch"], files=files)
    put(worker.call(f"/{second['id']}/uploads", epoch=second["epoch"], files=files)["urls"], MERGED)
    assert worker.finish(second, "succeeded", files=files) == {"status": "succeeded"}
    assert read(owner, owner.state(export)) == MERGED


def test_exports_of_others_and_of_nothing_are_unknown(owner: Owner, stranger: Owner, worker: Worker) -> None:
    worker.imported(owner, "private")
    export = owner.ask("POST", "/adapters/private/versions/1/exports", json={"format": "peft"})
    assert stranger.refused("GET", f"/adapters/exports/{export['id']}", 404) == "export_not_found"
    path = f"/adapters/exports/{export['id']}/files/{ADAPTER_CONFIG}"
    assert stranger.refused("GET", path, 404) == "export_not_found"
    asked = {"json": {"format": "peft"}}
    assert stranger.refused("POST", "/adapters/private/versions/1/exports", 404, **asked) == "adapter_not_found"
    assert owner.refused("POST", "/adapters/private/versions/2/exports", 404, **asked) == "version_not_found"
    assert owner.refused("POST", "/adapters/private/versions/1/exports", 400, json={"format": "gguf"})
    beside = f"/adapters/exports/{export['id']}/files/"
    for name in ("manifest.json", "..%2fadapter_config.json", "x"):
        assert owner.refused("GET", beside + name, 404) == "exported_file_not_found"
    owner.ask("DELETE", "/adapters/private")
    assert owner.refused("POST", "/adapters/private/versions/1/exports", 404, **asked) == "adapter_not_found"
