"""One file from object storage to disk, in a thread of its own, its size and hash proved on the way.

A thread that reads, hashes and writes one buffer after the other lets go of the interpreter in each of the three. The
event loop would need it for every piece that the kernel hands over, and takes almost twice as long for a large adapter.
"""

import asyncio
import contextlib
import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import urllib3

from inference.problems import AdapterError, unavailable
from service.contracts.manifest import ManifestFile

BATCH_BYTES = 1 << 20
CONNECT_SECONDS = 5.0
STALL_SECONDS = 15.0
"""A connection that brings no byte for so long is given up."""
THREADS = 8


class Downloads:
    """Connections to storage, kept for the next file, and the threads that use them. Storage gets no credentials."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="download")
        self._pool = urllib3.PoolManager(
            maxsize=THREADS,
            timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=STALL_SECONDS),
            # Redirects would be the choice of another host. Whoever asks for the adapter tries again, not this.
            retries=False,
            # Compressed answers would defeat the size bound.
            headers={"Accept-Encoding": "identity"},
        )

    async def fetch(self, url: str, file: ManifestFile, target: Path) -> None:
        """Raises AdapterError, or OSError where the disk is the trouble. Cancelled, it ends its thread first."""
        download = Download(self._pool, url, file, target)
        work = asyncio.get_running_loop().run_in_executor(self._threads, download.run)
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            download.stop()
            await asyncio.wait({work})
            if not work.cancelled():
                work.exception()  # nobody's any more
            raise

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._pool.clear()


class Download:
    """Blocking; `stop` may come from any thread at any time."""

    def __init__(self, pool: urllib3.PoolManager, url: str, file: ManifestFile, target: Path) -> None:
        self._pool, self._url, self._file, self._target = pool, url, file, target
        self._response: urllib3.BaseHTTPResponse | None = None
        self._stopped = False

    def run(self) -> None:
        try:
            digest, size = self._received()
        except urllib3.exceptions.HTTPError as error:
            raise unavailable(type(error).__name__) from error
        if size != self._file.size or digest != self._file.sha256:
            raise AdapterError("adapter_corrupt", f"{self._file.path} in storage is not what was published.")

    def stop(self) -> None:
        self._stopped = True
        if self._response is not None:
            with contextlib.suppress(RuntimeError, ValueError):  # it is over already
                self._response.shutdown()

    def _received(self) -> tuple[str, int]:
        response = self._pool.request("GET", self._url, redirect=False, preload_content=False, decode_content=False)
        self._response = response
        try:
            if response.status == 404:
                raise AdapterError("adapter_corrupt", f"{self._file.path} is missing from storage.")
            if response.status != 200:
                raise unavailable(f"storage answered {response.status}")
            return self._kept(response)
        finally:
            # Its connection too, unless the body was read to its end.
            response.close()

    def _kept(self, response: urllib3.BaseHTTPResponse) -> tuple[str, int]:
        digest, size = hashlib.sha256(), 0
        with self._target.open("xb", buffering=0) as sink:
            while size <= self._file.size and not self._stopped and (part := response.read(BATCH_BYTES)):
                size += len(part)
                digest.update(part)
                rest = memoryview(part)
                while rest:
                    rest = rest[sink.write(rest) or 0 :]
        return digest.hexdigest(), size
