"""The connections to replicas: kept for a while after an answer, made anew where none is free.

One look over all of them, every LOOK_SECONDS, stands in for a timer for each answer that is waited for.
"""

import asyncio
import re
import socket
import ssl
from collections import defaultdict
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from service.gateway.wire import NotConnected, Wire, WireSilent

CONNECT_SECONDS = 2.0
SILENCE_SECONDS = 600.0
"""As long as OpenAI's clients wait. A hung engine is found by its replica's canary long before."""
KEEPALIVE_SECONDS = 4.0
"""Less than the 5 s after which vLLM closes an idle connection, or requests would go out on dying ones."""
LOOK_SECONDS = 1.0
RECEIVE_BUFFER_BYTES = 16 << 10
"""The kernel's buffer for what a replica sends, which it doubles and which would grow to megabytes otherwise."""
MANY_HEADS = 10_000
UNSENDABLE = re.compile(r"[^\x21-\x7e]")


class Address(NamedTuple):
    """Where a replica is reached. `prefix` is what its paths begin with."""

    host: str
    port: int
    secure: bool
    authority: str
    prefix: str


class Pool:
    """One process's. An async context, that closes what is open in the end; needs `run` beside it."""

    def __init__(self) -> None:
        self._free: defaultdict[Address, list[Wire]] = defaultdict(list)
        self._all: dict[Wire, Address] = {}

    async def __aenter__(self) -> "Pool":
        return self

    async def __aexit__(self, *_: object) -> None:
        for wire in list(self._all):
            wire.abort()

    async def wire(self, url: str) -> Wire:
        """A connection to the replica. Raises NotConnected where there is none within CONNECT_SECONDS."""
        address = address_of(url)
        free = self._free.get(address)
        if free:
            oldest = asyncio.get_running_loop().time() - KEEPALIVE_SECONDS
            # The last one used first: the others come to their end.
            while free:
                wire = free.pop()
                if wire.heard > oldest and wire.usable:
                    return wire
                wire.abort()
        return await self._connected(address)

    async def run(self) -> None:
        """Looks until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look(asyncio.get_running_loop().time())

    def look(self, now: float) -> None:
        """Lets go of who waits for a replica that is silent, and closes what has been free for long."""
        for wire in [wire for wire in self._all if wire.is_silent(now - SILENCE_SECONDS)]:
            wire.fail(WireSilent("nothing came in time"))
        for address, free in list(self._free.items()):
            for wire in [wire for wire in free if wire.heard <= now - KEEPALIVE_SECONDS]:
                free.remove(wire)
                wire.abort()
            if not free:
                del self._free[address]

    async def _connected(self, address: Address) -> Wire:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                wire = await _wire(loop, address, self._freed)
        except TimeoutError as error:
            raise NotConnected(f"no connection within {CONNECT_SECONDS:g} s") from error
        except OSError as error:
            raise NotConnected(f"no connection: {error}") from error
        self._all[wire] = address
        return wire

    def _freed(self, wire: Wire) -> None:
        address = self._all.get(wire)
        if address is None:
            return
        if not wire.lost:
            self._free[address].append(wire)
            return
        del self._all[wire]
        if wire in self._free.get(address, ()):
            self._free[address].remove(wire)


@lru_cache(MANY_HEADS)
def address_of(url: str) -> Address:
    """Raises NotConnected where it says no place."""
    try:
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        port = parts.port or (443 if secure else 80)
    except ValueError as error:
        raise NotConnected(f"no address: {error}") from error
    if not parts.hostname or parts.scheme not in ("http", "https") or UNSENDABLE.search(url):
        raise NotConnected("the replica's URL is none")
    return Address(parts.hostname, port, secure, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"))


@lru_cache(MANY_HEADS)
def head_of(url: str, path: str, api_key: str) -> bytes:
    """What all requests for the path at a replica begin with. Raises NotConnected where it cannot be said."""
    address = address_of(url)
    if UNSENDABLE.search(api_key):
        raise NotConnected("the replica's key cannot be sent")
    lines = (
        f"POST {address.prefix}{path} HTTP/1.1",
        f"host: {address.authority}",
        f"authorization: Bearer {api_key}",
        "content-type: application/json",
        "accept: */*",
        "accept-encoding: identity",
    )
    return "".join(f"{line}\r\n" for line in lines).encode()


@lru_cache(1)
def _context() -> ssl.SSLContext:
    return ssl.create_default_context()


async def _wire(loop: asyncio.AbstractEventLoop, address: Address, free: Callable[[Wire], None]) -> Wire:
    made = await _socket(loop, address)
    secure: dict[str, Any] = {"ssl": _context(), "server_hostname": address.host} if address.secure else {}
    try:
        _, wire = await loop.create_connection(lambda: Wire(loop, free), sock=made, **secure)
    except BaseException:
        made.close()
        raise
    return wire


async def _socket(loop: asyncio.AbstractEventLoop, address: Address) -> socket.socket:
    """Connected to the first of the host's addresses that answers. How much it may receive has to be said before."""
    found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    failure: OSError | None = None
    for family, kind, protocol, _, place in found:
        made = socket.socket(family, kind, protocol)
        try:
            made.setblocking(False)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
            await loop.sock_connect(made, place)
        except OSError as error:
            made.close()
            failure = error
        except BaseException:
            made.close()
            raise
        else:
            return made
    raise failure or OSError("the host has no address")
