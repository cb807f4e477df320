"""One file from storage to disk: whole or refused, over kept connections, and ended at once when nobody wants it."""

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web

from inference.download import BATCH_BYTES, Downloads
from inference.problems import AdapterError
from service.contracts.manifest import ManifestFile

CONTENT = bytes(range(256)) * (3 * BATCH_BYTES // 256) + b"the rest"
FILE = ManifestFile(path="weights", sha256=hashlib.sha256(CONTENT).hexdigest(), size=len(CONTENT))


@dataclass
class Storage:
    url: str = ""
    peers: set[object] = field(default_factory=set)
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    more: int = 0
    """Bytes that were taken of an endless object."""

    async def whole(self, request: web.Request) -> web.Response:
        self.peers.add(request.transport and request.transport.get_extra_info("peername"))
        return web.Response(body=CONTENT)

    async def endless(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(bytes(BATCH_BYTES))
            self.more += BATCH_BYTES

    async def stalled(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-length": str(len(CONTENT))})
        await response.prepare(request)
        await response.write(CONTENT[:BATCH_BYTES])
        self.reached.set()
        await asyncio.sleep(60)
        return response

    async def elsewhere(self, request: web.Request) -> web.Response:
        raise web.HTTPFound(f"{self.url}/whole")


@pytest.fixture
async def storage() -> AsyncIterator[Storage]:
    made, app = Storage(), web.Application()
    for name in ("whole", "endless", "stalled", "elsewhere"):
        app.router.add_get(f"/{name}", getattr(made, name))
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


@pytest.fixture
async def downloads() -> AsyncIterator[Downloads]:
    made = Downloads()
    yield made
    made.close()


async def test_files_arrive_whole_over_one_connection(storage: Storage, downloads: Downloads, tmp_path: Path) -> None:
    for name in ("one", "two"):
        await downloads.fetch(f"{storage.url}/whole", FILE, tmp_path / name)
        assert (tmp_path / name).read_bytes() == CONTENT
    assert len(storage.peers) == 1


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("endless", "adapter_corrupt"),
        ("elsewhere", "adapter_storage_unavailable"),
        ("nowhere", "adapter_corrupt"),
    ],
)
async def test_what_is_no_such_file_is_refused(
    storage: Storage, downloads: Downloads, tmp_path: Path, path: str, problem: str
) -> None:
    with pytest.raises(AdapterError) as caught:
        await downloads.fetch(f"{storage.url}/{path}", FILE, tmp_path / "file")
    assert caught.value.problem == problem
    assert storage.more <= len(CONTENT) + (16 << 20), "more than the bound and what kernels hold"


async def test_a_fetch_that_nobody_wants_leaves_its_thread_at_once(
    storage: Storage, downloads: Downloads, tmp_path: Path
) -> None:
    work = asyncio.create_task(downloads.fetch(f"{storage.url}/stalled", FILE, tmp_path / "file"))
    await storage.reached.wait()
    work.cancel()
    async with asyncio.timeout(2):
        await asyncio.gather(work, return_exceptions=True)
    assert work.cancelled()
    downloads.close()
    threads = [each for each in threading.enumerate() if each.name.startswith("download")]
    await asyncio.to_thread(lambda: [thread.join(2) for thread in threads])
    assert not any(thread.is_alive() for thread in threads)
