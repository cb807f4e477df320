"""The real service in a process of its own that starts in about a second and is killed at the end of a block."""

import multiprocessing
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess

import uvloop

from service.__main__ import serve
from service.settings import ServiceSettings
from tests.conftest import wait_until

PATIENT_SECONDS = 900.0
"""Long, since a run of hours shares its machine with others, who may stop it for minutes to measure something."""


def forks() -> ForkServerContext:
    """Where the processes come from: each is a fork of one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


@contextmanager
def serving(context: ForkServerContext, settings: ServiceSettings) -> Iterator[BaseProcess]:
    """A service that answers, until kill -9."""
    process = context.Process(target=serve_forever, args=(settings,))
    process.start()
    try:
        wait_until(lambda: listening(settings) or not process.is_alive(), PATIENT_SECONDS, "the service listens")
        assert process.is_alive()
        yield process
    finally:
        process.kill()
        process.join()


def serve_forever(settings: ServiceSettings) -> None:
    uvloop.run(serve(settings, only_check=False))


def listening(settings: ServiceSettings) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", settings.port), timeout=5):
        return True
    return False
