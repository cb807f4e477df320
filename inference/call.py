"""One request on its way through admission: the body once to vLLM, then whatever its client does, and what it cost."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, TypeVar

from inference.metering import Tokens
from inference.work import Work

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
T = TypeVar("T")


class Gone(Exception):
    """The client left; nobody is there to answer."""


class Call:
    def __init__(self, body: bytes, receive: Receive, send: Send) -> None:
        self._body: bytes | None = body
        self._receive = receive
        self._send = send
        self._next: asyncio.Task[Message] | None = None
        self.headers: list[tuple[bytes, bytes]] = []
        """To add to the answer's own."""
        self.work = Work()
        self.complete = False

    @property
    def used(self) -> Tokens | None:
        """What the engine has done for it; a refusal costs nothing. None: nobody knows, since its client left early."""
        if self.work.began:
            return self.work.tokens
        return Tokens() if self.complete else None

    async def receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        if self._next is not None:
            pending, self._next = self._next, None
            return await pending
        return await self._receive()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *self.headers]
        await self._send(message)
        if message["type"] == "http.response.body":
            self.complete = not message.get("more_body", False)

    async def unless_gone(self, work: Coroutine[Any, Any, T]) -> T:
        """Ends `work` when the client leaves first; else the listening goes on for vLLM."""
        self._next = asyncio.ensure_future(self._receive())
        task = asyncio.create_task(work)
        try:
            await asyncio.wait({task, self._next}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
        finally:
            task.cancel()
        await asyncio.wait({task})
        if task.cancelled() or task.exception() is not None:
            raise Gone
        return task.result()

    def close(self) -> None:
        if self._next is not None:
            self._next.cancel()
