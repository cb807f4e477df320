"""`python -m service.files.inspector`: a child that inspects what it reads and writes its findings as one JSON object.

In a process of its own so that a large or hostile file costs other requests nothing, with limits on memory and time.
Its input is the Order as one line of JSON, then one or two files (the one to compare with comes first), each as
frames of a length and so many bytes, ended by an empty frame. It stops reading once it has given up.
"""

import os
import resource
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

from pydantic import BaseModel

from service.files.inspection import Inspection

MEMORY_BYTES = 1 << 30
TOKENIZER_BYTES = 1 << 30
"""More, of addresses, where a tokenizer is loaded: large ones have a quarter of a million tokens."""
COUNT_SECONDS = 20
"""Of processor time for counting tokens; what is left then is estimated."""
NICE = 10
FRAME = struct.Struct(">I")
MAX_FRAME = 8 << 20


class Order(BaseModel):
    purpose: str
    max_line_bytes: int
    patience: int
    cpu_seconds: int
    compared: bool = False
    tokenizer: str | None = None


def main(source: BinaryIO, target: BinaryIO) -> None:
    order = Order.model_validate_json(source.readline(4096))
    memory = MEMORY_BYTES + (TOKENIZER_BYTES if order.tokenizer else 0)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (order.cpu_seconds, order.cpu_seconds + 1))
    os.nice(NICE)
    others = None
    if order.compared:
        other = Inspection(order.purpose, order.max_line_bytes)
        for piece in pieces(source):
            other.feed(piece)
        other.finish()
        others = other.fingerprints
    count = None if order.tokenizer is None else _count(order.tokenizer)
    inspection = Inspection(order.purpose, order.max_line_bytes, others, patience=order.patience, count=count)
    for piece in pieces(source):
        inspection.feed(piece)
        if inspection.given_up:
            break
    target.write(inspection.finish().model_dump_json().encode())


def _count(tokenizer: str) -> Callable[[Iterable[str]], int | None] | None:
    # Here and not above: the service imports this module, and has no use for the library.
    from service.files import tokens

    return tokens.load(tokenizer, COUNT_SECONDS)


def pieces(source: BinaryIO) -> Iterator[bytes]:
    """The frames of one file. Raises EOFError where whoever sends them is gone."""
    while True:
        header = source.read(FRAME.size)
        if len(header) < FRAME.size:
            raise EOFError("the file ended before it was whole")
        (length,) = FRAME.unpack(header)
        if not length:
            return
        if length > MAX_FRAME:
            raise ValueError("a frame is too long")
        yield source.read(length)


if __name__ == "__main__":
    try:
        main(sys.stdin.buffer, sys.stdout.buffer)
    except Exception as error:
        # Its kind only: what it says may quote the file.
        sys.exit(f"file inspector: {type(error).__name__}")
