"""Uploads of local files: at once or in parts, whole in the end whatever fails on the way."""

import asyncio
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import openai
import pytest

from tests.clients.conftest import Tenant, examples
from tests.service.conftest import Service
from weft import AsyncWeft, FileChanged, Weft
from weft.resources import uploading
from weft.resources.uploading import Progress

PART = 100_000


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "large.jsonl"
    path.write_bytes(examples(7000))
    return path


class Failing(httpx2.HTTPTransport):
    """Answers the first requests for each part with an error of its own, some after the service has had them."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self._left = failures
        self._lock = threading.Lock()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        with self._lock:
            failing = self._left > 0 and request.url.path.endswith("/parts")
            self._left -= failing
            late = self._left % 2 == 0
        if not failing:
            return super().handle_request(request)
        if late:
            super().handle_request(request).read()
        raise httpx2.ReadError("cut")


@pytest.fixture
def flaky(service: Service, tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> Iterator[Weft]:
    monkeypatch.setattr(uploading, "delay", lambda attempt: 0.01)
    with httpx2.Client(transport=Failing(5)) as http:
        yield Weft(api_key=tenant.key, base_url=f"{service.url}/v1", http_client=http, max_retries=0)


def content_of(tenant: Tenant, file: str) -> bytes:
    return tenant.client.files.content(file).read()


def test_a_small_file_goes_at_once_and_its_progress_is_told(tenant: Tenant, folder: Path) -> None:
    told: list[Progress] = []
    file = tenant.client.files.upload(folder / "train.jsonl", "fine-tune", on_progress=told.append)
    assert (file.filename, file.bytes, file.status) == ("train.jsonl", len(examples()), "processed")
    assert told[-1] == Progress(file.bytes, file.bytes)
    assert content_of(tenant, file.id) == examples()


def test_a_large_file_goes_in_parts(tenant: Tenant, large: Path) -> None:
    told: list[Progress] = []
    file = tenant.client.files.upload(large, "fine-tune", on_progress=told.append, part_bytes=PART)
    size = large.stat().st_size
    assert [progress.done for progress in told] == sorted(progress.done for progress in told)
    assert len(told) == -(-size // PART) > 5
    assert told[-1] == Progress(size, size)
    assert content_of(tenant, file.id) == large.read_bytes()


def test_the_size_decides(tenant: Tenant, large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weft.resources.files.PLAIN_BYTES", large.stat().st_size - 1)
    monkeypatch.setattr(uploading, "PART_BYTES", PART)
    told: list[Progress] = []
    tenant.client.files.upload(large, "fine-tune", on_progress=told.append)
    assert len(told) == -(-large.stat().st_size // PART)


def test_an_asynchronous_upload_does_both(tenant: Tenant, large: Path) -> None:
    async def upload() -> list[str]:
        async with AsyncWeft(api_key=tenant.key, base_url=tenant.client.base_url) as client:
            parts = await client.files.upload(large, "fine-tune", part_bytes=PART)
            whole = await client.files.upload(str(large), "fine-tune")
            return [parts.id, whole.id]

    for file in asyncio.run(upload()):
        assert content_of(tenant, file) == large.read_bytes()


def test_parts_that_fail_are_sent_again(tenant: Tenant, flaky: Weft, large: Path) -> None:
    file = flaky.files.upload(large, "fine-tune", part_bytes=PART)
    assert content_of(tenant, file.id) == large.read_bytes()


def test_a_part_that_always_fails_ends_the_upload(service: Service, tenant: Tenant, large: Path) -> None:
    cancelled: list[str] = []

    class Watching(Failing):
        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            if request.url.path.endswith("/cancel"):
                cancelled.append(request.url.path)
            return super().handle_request(request)

    with httpx2.Client(transport=Watching(10_000)) as http, pytest.MonkeyPatch.context() as patch:
        patch.setattr("weft.resources.files.delay", lambda attempt: 0.01)
        client = Weft(api_key=tenant.key, base_url=f"{service.url}/v1", http_client=http, max_retries=0)
        with pytest.raises(openai.APIConnectionError):
            client.files.upload(large, "fine-tune", part_bytes=PART)
    assert len(cancelled) == 1


def test_a_refused_part_is_not_repeated(tenant: Tenant, large: Path) -> None:
    """The key lost its right to files between two parts, say: the error comes as the service sent it."""
    asked: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.url.path)
        if request.url.path.endswith("/parts"):
            return httpx2.Response(403, json={"error": {"message": "no", "code": "insufficient_permissions"}})
        return httpx2.Response(200, json={"id": "upload_1", "status": "pending"})

    with httpx2.Client(transport=httpx2.MockTransport(answer)) as http:
        client = Weft(api_key="sk-weft-mine", http_client=http)
        with pytest.raises(openai.PermissionDeniedError):
            client.files.upload(large, "fine-tune", part_bytes=PART, parallel=1)
    assert asked.count("/v1/uploads/upload_1/parts") == 1
    assert asked[-1] == "/v1/uploads/upload_1/cancel"


def test_a_file_that_changes_meanwhile_is_refused(tenant: Tenant, tmp_path: Path) -> None:
    path = tmp_path / "growing.jsonl"
    path.write_bytes(examples(3000))

    def rewrite(progress: Progress) -> None:
        path.write_bytes(examples(3000).replace(b"plus", b"less"))

    with pytest.raises((FileChanged, openai.BadRequestError)):
        tenant.client.files.upload(path, "fine-tune", on_progress=rewrite, part_bytes=PART, parallel=1)
    assert path.name not in [file.filename for file in tenant.client.files.list()]


@pytest.mark.parametrize("size", [0, -1, uploading.LARGEST_PART + 1])
def test_part_sizes_that_cannot_be(tenant: Tenant, large: Path, size: int) -> None:
    with pytest.raises(ValueError, match="part_bytes"):
        uploading.Source.of(large).parts(size or -1)


def test_no_such_file(tenant: Tenant, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        tenant.client.files.upload(tmp_path / "none.jsonl", "fine-tune")


def test_parts_of_the_largest_file_are_few_enough() -> None:
    source = uploading.Source(Path("none"), 8 << 30, 0)
    parts = source.parts(None)
    assert len(parts) <= uploading.MAX_PARTS
    assert sum(part.size for part in parts) == 8 << 30


def test_a_bad_file_is_refused_with_its_lines(tenant: Tenant, folder: Path) -> None:
    with pytest.raises(openai.BadRequestError, match="line 2"):
        tenant.client.files.upload(folder / "broken.jsonl", "fine-tune")


def test_the_md5_of_the_file_is_what_the_service_checks(tenant: Tenant, large: Path) -> None:
    expected = hashlib.md5(large.read_bytes(), usedforsecurity=False).hexdigest()
    assert uploading.Source.of(large).md5() == expected
    os.utime(large, (1, 1))
    source = uploading.Source.of(large)
    os.utime(large, (2, 2))
    with pytest.raises(FileChanged):
        source.md5()
