"""A unix socket in front of PostgreSQL that a test can cut and mend, so that other tests keep their database."""

import asyncio
import contextlib
import threading
from pathlib import Path

SOCKET = ".s.PGSQL.5432"


class Proxy:
    def __init__(self, folder: Path, target: Path) -> None:
        self.folder = folder
        self._target = target / SOCKET
        self._writers: set[asyncio.StreamWriter] = set()
        self._up = True
        started = threading.Event()

        async def serve() -> None:
            self._loop = asyncio.get_running_loop()
            self._stopping = asyncio.Event()
            async with await asyncio.start_unix_server(self._join, folder / SOCKET):
                started.set()
                await self._stopping.wait()
                self._drop()

        self._thread = threading.Thread(target=asyncio.run, args=(serve(),), name="proxy")
        self._thread.start()
        assert started.wait(5)

    def cut(self) -> None:
        """Ends every connection and refuses new ones."""
        self._up = False
        self._loop.call_soon_threadsafe(self._drop)

    def mend(self) -> None:
        self._up = True

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(5)

    def _drop(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._up:
            writer.transport.abort()
            return
        there, back = await asyncio.open_unix_connection(self._target)
        self._writers |= {writer, back}
        await asyncio.gather(_copy(reader, back), _copy(there, writer))
        self._writers -= {writer, back}


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
