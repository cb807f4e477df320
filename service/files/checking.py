"""Has a file inspected in a child process that is fed by a thread; see `inspector` for why."""

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from service.errors import Unavailable
from service.files.inspection import PATIENCE, Findings
from service.files.inspector import COUNT_SECONDS, FRAME, MAX_FRAME, Order

SECONDS_PER_MEGABYTE = 2
LEAST_SECONDS = 30
THREADS = ThreadPoolExecutor(4, "files")
"""Few, so that whoever checks many files at once waits here and not on the service's other storage calls."""

T = TypeVar("T")


class Inspector:
    """The child, from this side. Calls block."""

    def __init__(self, process: "subprocess.Popen[bytes]", order: Order) -> None:
        assert process.stdin
        assert process.stdout
        self._process, self._to, self._from = process, process.stdin, process.stdout
        self.given_up = False
        """More pieces would change nothing."""
        self._send(order.model_dump_json().encode() + b"\n")

    def feed(self, piece: bytes) -> None:
        for start in range(0, len(piece), MAX_FRAME):
            part = piece[start : start + MAX_FRAME]
            self._send(FRAME.pack(len(part)) + part)

    def end_file(self) -> None:
        self._send(FRAME.pack(0))

    def finish(self) -> Findings:
        """Ends the last file. Raises Unavailable where the child did not get to the end of it."""
        self.end_file()
        with contextlib.suppress(BrokenPipeError):
            self._to.close()
        found = self._from.read()
        if self._process.wait() != 0:
            raise Unavailable("The file could not be checked; try again.", code="validation_unavailable")
        return Findings.model_validate_json(found)

    def _send(self, frame: bytes) -> None:
        if self.given_up:
            return
        try:
            self._to.write(frame)
        except BrokenPipeError:
            # It reads no more: it has given up, or `finish` will find that it died.
            self.given_up = True


@contextmanager
def inspector(
    purpose: str,
    max_line_bytes: int,
    size: int,
    *,
    patience: int = PATIENCE,
    compared: bool = False,
    tokenizer: str | None = None,
) -> Generator[Inspector]:
    """A child for files of together `size` bytes, gone when the block ends. `tokenizer` is the file of one."""
    seconds = LEAST_SECONDS + SECONDS_PER_MEGABYTE * (size >> 20)
    order = Order(
        purpose=purpose,
        max_line_bytes=max_line_bytes,
        patience=patience,
        cpu_seconds=seconds + (2 * COUNT_SECONDS if tokenizer else 0),
        compared=compared,
        tokenizer=tokenizer,
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "service.files.inspector"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # No secrets of ours; only where the code lies.
        env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TOKENIZERS_PARALLELISM": "false"},
    )
    try:
        yield Inspector(process, order)
    finally:
        process.kill()
        process.wait()
        for end in (process.stdin, process.stdout):
            with contextlib.suppress(BrokenPipeError):
                if end is not None:
                    end.close()


async def in_thread(work: Callable[[threading.Event], T]) -> T:
    """Runs `work` in one of a few threads of its own; it is told to stop where nobody waits for it any more."""
    stop = threading.Event()
    try:
        return await asyncio.get_running_loop().run_in_executor(THREADS, work, stop)
    except asyncio.CancelledError:
        stop.set()
        raise
