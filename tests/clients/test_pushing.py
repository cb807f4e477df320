"""Adapters pushed from a folder: both files under one account of the progress, and nothing left of them behind."""

import asyncio
from pathlib import Path

import openai
import pytest

from tests.clients.conftest import Carrier, Tenant
from tests.service.transfers.conftest import CONFIG, WEIGHTS
from weft import AsyncWeft, ImportFailed, WaitTimeout
from weft.resources.uploading import Progress
from weft.types import AdapterVersion

SIZE = len(CONFIG) + len(WEIGHTS)


def files_of(tenant: Tenant) -> list[str]:
    return [file.filename for file in tenant.client.files.list()]


def test_a_folder_becomes_a_version_and_its_files_are_gone(tenant: Tenant, saved: Path, carrier: Carrier) -> None:
    told: list[Progress] = []
    version = tenant.client.adapters.push(saved, "brought", on_progress=told.append, timeout=60)
    assert (version.model, version.source.type) == ("brought@v1", "import")
    assert carrier.read == [{"adapter_config.json": CONFIG, "adapter_model.safetensors": WEIGHTS}]
    assert [progress.done for progress in told] == sorted(progress.done for progress in told)
    assert {progress.total for progress in told} == {SIZE}
    assert told[-1] == Progress(SIZE, SIZE)
    assert files_of(tenant) == []


def test_the_asynchronous_client_does_the_same(tenant: Tenant, saved: Path, carrier: Carrier) -> None:
    told: list[Progress] = []

    async def push() -> AdapterVersion:
        async with AsyncWeft(api_key=tenant.key, base_url=tenant.client.base_url) as client:
            made = await client.adapters.push(saved, "brought", on_progress=told.append, timeout=60)
            carrier.refusing = True
            with pytest.raises(ImportFailed):
                await client.adapters.push(saved, "brought", timeout=60)
            return made

    version = asyncio.run(push())
    assert version.source.type == "import"
    assert told[-1] == Progress(SIZE, SIZE)
    assert files_of(tenant) == []


def test_a_refused_folder_leaves_nothing_behind(tenant: Tenant, saved: Path, carrier: Carrier) -> None:
    carrier.refusing = True
    with pytest.raises(ImportFailed, match="no adapter") as refused:
        tenant.client.adapters.push(saved, "refused", timeout=60)
    assert refused.value.code == "adapter_invalid"
    assert files_of(tenant) == []


def test_an_import_that_cannot_begin_leaves_nothing_behind(tenant: Tenant, saved: Path) -> None:
    with pytest.raises(openai.BadRequestError):
        tenant.client.adapters.push(saved, "refused", base_model="no-such-base")
    assert files_of(tenant) == []


def test_an_upload_that_fails_leaves_nothing_behind(tenant: Tenant, saved: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.done > len(CONFIG):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tenant.client.adapters.push(saved, "refused", on_progress=stop)
    assert files_of(tenant) == []


def test_an_import_that_goes_on_keeps_its_files_for_a_day(tenant: Tenant, saved: Path, carrier: Carrier) -> None:
    carrier.idle = True
    with pytest.raises(WaitTimeout):
        tenant.client.adapters.push(saved, "later", timeout=0.2)
    kept = list(tenant.client.files.list())
    assert {(file.expires_at or 0) - file.created_at for file in kept} == {86_400}
    carrier.idle = False
    (begun,) = tenant.client.adapters.imports.list(limit=1).data
    assert tenant.client.adapters.imports.wait(begun.id, timeout=60).model == "later@v1"
    for file in kept:
        tenant.client.files.delete(file.id)


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_folder_without_both_files_is_not_pushed(tenant: Tenant, saved: Path, missing: str) -> None:
    (saved / missing).unlink()
    uploaded: list[Progress] = []
    with pytest.raises(FileNotFoundError, match=missing):
        tenant.client.adapters.push(saved, "refused", on_progress=uploaded.append)
    assert uploaded == []
