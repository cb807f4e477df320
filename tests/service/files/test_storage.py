"""Uploads and downloads while the store is away, and the size limit. This module has a store of its own to stop."""

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import openai
import pytest

from deploy.local import objectstore
from deploy.local.secrets import Secrets
from service.contracts.store import ObjectStore, StoreError
from service.settings import ServiceSettings
from tests.conftest import free_port, running, wait_until
from tests.service.conftest import Service

LIMIT = 200_000
LINE = b'{"prompt":"a","completion":"b"}\n'


class StoppableStore:
    def __init__(self, folder: Path, secrets: Secrets) -> None:
        self._log = folder / "log"
        self._process = contextlib.ExitStack()
        self.parts = objectstore.prepare(folder / "data", free_port(), secrets)
        self.client = ObjectStore(self.parts.settings)

    def start(self) -> None:
        self._process.enter_context(running(self.parts.argv, self._log, env=self.parts.env))
        wait_until(self._answers, what="store ready")

    def stop(self) -> None:
        self._process.close()

    def _answers(self) -> bool:
        try:
            self.client.ensure_bucket()
        except StoreError:
            return False
        return True


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, test_secrets: Secrets) -> Iterator[StoppableStore]:
    store = StoppableStore(tmp_path_factory.mktemp("store"), test_secrets)
    store.start()
    yield store
    store.stop()


@pytest.fixture(scope="module")
def service_settings(service_settings: ServiceSettings, store: StoppableStore) -> ServiceSettings:
    return service_settings.model_copy(update={"store": store.parts.settings, "max_file_bytes": LIMIT})


def created(api: openai.OpenAI, content: bytes) -> str:
    return api.files.create(file=("f.jsonl", io.BytesIO(content)), purpose="fine-tune").id


def test_a_store_that_is_away_is_a_503_and_loses_nothing(
    service: Service,
    store: StoppableStore,
    client: Callable[[str], openai.OpenAI],
    make_project: Callable[[str], tuple[str, str]],
) -> None:
    api = client(make_project("away")[1])
    before = created(api, LINE * 10)
    store.stop()
    for call in (lambda: created(api, LINE * 20), lambda: api.files.content(before).read()):
        with pytest.raises(openai.InternalServerError) as caught:
            call()
        assert (caught.value.status_code, caught.value.code) == (503, "storage_unavailable")
        assert caught.value.response.headers["retry-after"] == "1"
    # What needs no bytes goes on, and the upload that failed is not there.
    assert [file.id for file in api.files.list()] == [before]
    assert httpx2.get(f"{service.url}/readyz").json()["store"] is False
    store.start()
    assert api.files.content(before).read() == LINE * 10
    after = created(api, LINE * 20)
    assert [file.id for file in api.files.list()] == [after, before]


@pytest.mark.parametrize("size", [LIMIT + len(LINE), LIMIT * 3])
def test_a_file_over_the_limit_is_a_413_and_leaves_nothing(
    store: StoppableStore,
    client: Callable[[str], openai.OpenAI],
    make_project: Callable[[str], tuple[str, str]],
    size: int,
) -> None:
    project, key = make_project(f"large-{size}")
    with pytest.raises(openai.APIStatusError) as caught:
        created(client(key), LINE * (size // len(LINE)))
    assert (caught.value.status_code, caught.value.code) == (413, "payload_too_large")
    assert store.client.keys(f"t/{project}/") == []
    assert created(client(key), LINE * (LIMIT // len(LINE)))


def test_the_limit_holds_where_no_length_is_declared(
    service: Service, make_project: Callable[[str], tuple[str, str]]
) -> None:
    def body() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        for _ in range(LIMIT // 1000 + 200):
            yield b"x" * 1000

    headers = {
        "authorization": f"Bearer {make_project('endless')[1]}",
        "content-type": "multipart/form-data; boundary=x",
    }
    response = httpx2.post(f"{service.url}/v1/files", content=body(), headers=headers, timeout=30)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "payload_too_large"
