"""What it has cost where a client left before any of its answer came: replicas know, and are asked afterwards.

A replica counts what its engine did for each request and remembers it for a while. Here is only the asking: soon, for
all such requests of a replica at once, and again while it does not know yet. What it never knows, since its engine had
not begun or the replica is gone, is nobody's debt.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import aiohttp
from pydantic import ValidationError

from service.contracts.replica import MOST_REQUEST_IDS, SPENT_PATH, RequestIds, Spent
from service.gateway.events import Usage
from service.replicas.membership import Replica

PAUSE_SECONDS = 0.1
"""Before the first look, when a replica has noticed that the connection is gone; twice as long before each other."""
LONGEST_PAUSE_SECONDS = 1.0
PATIENCE_SECONDS = 5.0
"""For so long a replica is asked."""
TIMEOUT = aiohttp.ClientTimeout(total=2.0)
MOST_WAITING = 10_000

log = logging.getLogger("service.gateway")


@dataclass(frozen=True, slots=True)
class _Waiting:
    replica: Replica
    book: Callable[[Usage], None]
    until: float


class Abandoned:
    """One process's; needs `run` beside it."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self.waiting: dict[str, _Waiting] = {}
        self._some = asyncio.Event()

    def note(self, replica: Replica, request_id: str, book: Callable[[Usage], None]) -> None:
        """The request's connection to `replica` was given up. `book` is called once it is known what that had cost."""
        if len(self.waiting) >= MOST_WAITING:
            log.error("usage of request %s, whose client left, is not booked: too many have left", request_id)
            return
        until = asyncio.get_running_loop().time() + PATIENCE_SECONDS
        self.waiting[request_id] = _Waiting(replica, book, until)
        self._some.set()

    async def run(self) -> None:
        """Asks until cancelled."""
        pause = PAUSE_SECONDS
        while True:
            await self._some.wait()
            await asyncio.sleep(pause)
            await self.look()
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS) if self.waiting else PAUSE_SECONDS

    async def look(self) -> None:
        """Asks once about all that wait, and gives up those that have waited too long."""
        replicas: dict[Replica, list[str]] = defaultdict(list)
        for request_id, waiting in self.waiting.items():
            replicas[waiting.replica].append(request_id)
        await asyncio.gather(*(self._ask(replica, ids[:MOST_REQUEST_IDS]) for replica, ids in replicas.items()))
        now = asyncio.get_running_loop().time()
        self._drop([request_id for request_id, waiting in self.waiting.items() if waiting.until < now])

    async def _ask(self, replica: Replica, request_ids: list[str]) -> None:
        body = RequestIds(ids=tuple(request_ids)).model_dump_json()
        headers = {"Authorization": f"Bearer {replica.api_key}", "Content-Type": "application/json"}
        url = replica.url + SPENT_PATH
        try:
            async with self._session.post(url, data=body, headers=headers, timeout=TIMEOUT) as answer:
                answer.raise_for_status()
                spent = Spent.model_validate_json(await answer.read())
        except (aiohttp.ClientError, TimeoutError, OSError, ValidationError) as error:
            log.warning("replica %s does not say what abandoned requests cost: %s", replica.id, type(error).__name__)
            return
        for request_id, tokens in spent.tokens.items():
            if request_id in self.waiting:
                self.waiting[request_id].book(Usage(tokens.prompt, tokens.completion))
        self._drop(spent.tokens)

    def _drop(self, request_ids: Iterable[str]) -> None:
        for request_id in request_ids:
            self.waiting.pop(request_id, None)
        if not self.waiting:
            self._some.clear()
