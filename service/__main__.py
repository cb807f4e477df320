"""`python -m service` serves until told to stop; `python -m service check` only looks whether it could start.

`python -m service openapi` prints the API's description and needs no configuration.
"""

import gc
import json
import logging
import signal
import sys
from socket import socket
from types import FrameType
from typing import NoReturn

import uvicorn
import uvloop
from pydantic import ValidationError
from pydantic_settings import SettingsError

from service.app import create_app, lifespan, public_routes
from service.connections import connections
from service.contracts.store import StoreError
from service.db import DatabaseUnavailable, UnsafeDatabase
from service.openapi.document import document
from service.resources import Resources
from service.settings import ServiceSettings

SHUTDOWN_SECONDS = 10
KEEP_ALIVE_SECONDS = 75
COLLECTED_AT = 10_000
"""Objects more than before. Python's own 700 are what a few requests in progress hold, and were looked through by
every second request; next to nothing of theirs is in cycles.
"""


class Server(uvicorn.Server):
    """Tells whoever started this process when requests may come, and what waits inside it when no more do."""

    def __init__(self, config: uvicorn.Config, resources: Resources) -> None:
        super().__init__(config)
        self._resources = resources

    async def startup(self, sockets: list[socket] | None = None) -> None:
        await super().startup(sockets)
        # What is there now stays. Looked through at each full collection, it would hold every request up for a while.
        gc.collect()
        gc.freeze()
        gc.set_threshold(COLLECTED_AT)
        if self.started:
            sys.stdout.write(f"service: listening on http://{self.config.host}:{self.config.port}\n")
            sys.stdout.flush()

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        self._resources.ending.set()
        await super().shutdown(sockets)


async def serve(settings: ServiceSettings, only_check: bool) -> None:
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=connections(settings.stall_seconds),
        ws="none",
        # The lifespan is entered below, so that a refused start is one sentence and not a trace.
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )
    async with lifespan(app):
        if not only_check:
            await Server(config, app.state.resources).serve()


def main(arguments: list[str]) -> int:
    if arguments == ["openapi"]:
        sys.stdout.write(json.dumps(document(public_routes()), indent=1) + "\n")
        return 0
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGTERM, _leave)
    try:
        settings = ServiceSettings()  # pyright: ignore[reportCallIssue]
        uvloop.run(serve(settings, only_check=arguments == ["check"]))
    except (ValidationError, SettingsError) as error:
        sys.stderr.write(f"service: the configuration is not usable: {_problems(error)}\n")
        return 2
    except (UnsafeDatabase, DatabaseUnavailable, StoreError) as error:
        sys.stderr.write(f"service: refuses to start: {error}\n")
        return 1
    return 0


def _problems(error: ValidationError | SettingsError) -> str:
    """Names and reasons without the values, which may be secrets."""
    if isinstance(error, SettingsError):
        return str(error)
    return "; ".join(
        f"WEFT_{'__'.join(str(part) for part in problem['loc']).upper()}: {problem['msg']}"
        for problem in error.errors(include_url=False, include_context=False, include_input=False)
    )


def _leave(_signal: int, _frame: FrameType | None) -> NoReturn:
    """uvicorn raises SIGTERM once more after its own clean end; this lets the lifespan close instead of dying there."""
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
