"""The lines of a stored file, one after the other, whatever the file's size."""

import asyncio
from collections.abc import AsyncGenerator

from service.contracts.store import ObjectStore
from service.files.datasets import SPACE


async def stored_lines(store: ObjectStore, key: str) -> AsyncGenerator[tuple[int, bytes]]:
    """Number and text of each line that is not empty."""
    pieces = await asyncio.to_thread(store.open, key)
    rest, number, last = b"", 0, False
    while not last:
        piece = await asyncio.to_thread(next, pieces, b"")
        last = not piece
        *whole, rest = (rest + (piece or b"\n")).split(b"\n")
        for line in whole:
            number += 1
            if line.strip(SPACE):
                yield number, line
