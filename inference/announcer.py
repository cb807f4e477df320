"""The replica's word to the service: a heartbeat with its state, and what the service orders in answer.

A service that cannot be reached changes nothing here: the replica serves on and keeps trying.
"""

import asyncio
import contextlib

import aiohttp
from pydantic import ValidationError

from inference.child import ChildApi
from inference.settings import ReplicaSettings
from service.contracts.replica import MOST_ADAPTERS, MOST_STORED, ReplicaHeartbeat, ReplicaOrders, ReplicaStatus

_CALL_SECONDS = 5.0
_FAILURES = (aiohttp.ClientError, TimeoutError, ValidationError)


class Announcer:
    """Repeats the current state until it is stopped; `tell` sends a new one at once."""

    def __init__(self, settings: ReplicaSettings, session: aiohttp.ClientSession, child: ChildApi) -> None:
        self._settings = settings
        self._session = session
        self._child = child
        self._url = f"{settings.service_url.rstrip('/')}/internal/replicas/{settings.replica_id}"
        self._headers = {"Authorization": f"Bearer {settings.replica_token.get_secret_value()}"}
        self._state = "starting"
        self._changed = asyncio.Event()
        self._evicting: dict[str, asyncio.Task[bool]] = {}
        self._trouble: str | None = None
        self._told = 0
        """How many of the adapters that do not fit into one message were named since the first of them."""

    @property
    def state(self) -> str:
        return self._state

    def tell(self, state: str) -> None:
        self._state = state
        self._changed.set()

    async def run(self) -> None:
        seconds = self._settings.heartbeat_seconds
        while True:
            self._changed.clear()
            orders = await self.heartbeat()
            if orders is not None:
                seconds = orders.heartbeat_seconds
                self._carry_out(orders)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._changed.wait()

    async def heartbeat(self) -> ReplicaOrders | None:
        """One announcement; None if the service could not be reached or understood."""
        status = await self._child.status() if self._state in ("ready", "draining") else None
        body = self._message(status)
        headers = {**self._headers, "Content-Type": "application/json"}
        try:
            async with self._session.put(self._url, data=body.model_dump_json(), headers=headers) as response:
                answer = await response.read()
            if response.status == 200:
                orders = ReplicaOrders.model_validate_json(answer)
                self._note(None)
                return orders
            self._note(f"it answered {response.status}")
        except _FAILURES as error:
            self._note(type(error).__name__)
        return None

    async def leave(self) -> None:
        """Takes the replica out of the service's membership; if that fails, its missing heartbeats will."""
        with contextlib.suppress(*_FAILURES):
            async with self._session.delete(self._url, headers=self._headers):
                pass

    def _message(self, status: ReplicaStatus | None) -> ReplicaHeartbeat:
        settings = self._settings
        held = tuple(status.adapters) if status else ()
        return ReplicaHeartbeat.model_validate(
            {
                "url": settings.public_url or f"http://{settings.host}:{settings.port}",
                "api_key": settings.api_key.get_secret_value(),
                "base_model": settings.base_model,
                "base_fingerprint": settings.base_fingerprint,
                "state": self._state,
                "max_loras": settings.max_loras,
                "max_lora_rank": settings.max_lora_rank,
                "context_length": settings.context_length,
                "adapters": held[:MOST_ADAPTERS],
                "stored": self._some_of(held[MOST_ADAPTERS:]),
                "quarantined": status.quarantined if status else {},
            }
        )

    def _some_of(self, rest: tuple[str, ...]) -> tuple[str, ...]:
        """So that each is named now and then, and ordered away if it was deleted."""
        begin = self._told if self._told < len(rest) else 0
        self._told = begin + MOST_STORED
        return rest[begin : self._told]

    def _carry_out(self, orders: ReplicaOrders) -> None:
        """Evictions wait for requests in flight, so they run beside the heartbeats; a failed one is ordered again."""
        for adapter in orders.evict:
            if self._state == "ready" and adapter not in self._evicting:
                task = asyncio.create_task(self._child.evict(adapter))
                self._evicting[adapter] = task
                task.add_done_callback(lambda _, adapter=adapter: self._evicting.pop(adapter))

    def _note(self, trouble: str | None) -> None:
        """One line when the service is lost and one when it is back, not one per heartbeat."""
        if trouble != self._trouble:
            self._trouble = trouble
            words = f"service lost ({trouble}); serving on, trying on" if trouble else "service reached"
            print(f"replica: {words}", flush=True)  # noqa: T201
