"""Connections to replicas: what counts as an answer, what is kept for the next request, what is held, how long."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from service.gateway.pool import KEEPALIVE_SECONDS, SILENCE_SECONDS, Pool, address_of, head_of
from service.gateway.wire import HEAD_BYTES, JOINED_BYTES, READ_BUFFER_BYTES, NotConnected, Wire, WireError, WireSilent

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
WHOLE = b"HTTP/1.1 200 OK\r\nX-Name: One\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
UNSIZED = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n"


class Replica:
    """A server that does as `script` says on each connection, and counts them."""

    def __init__(self, script: Script) -> None:
        self.connections = 0
        self._script = script

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self._script(reader, writer)
        finally:
            writer.close()


@asynccontextmanager
async def replica(script: Script) -> AsyncIterator[tuple[Pool, str, Replica]]:
    made = Replica(script)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    async with server, Pool() as pool:
        yield pool, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", made


async def request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.rpartition(b"content-length: ")[2])
    return await reader.readexactly(length)


def answering(*answers: bytes) -> Script:
    """Each request is answered by the next of them; then the connection is closed."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await request(reader)
            writer.write(answer)
            await writer.drain()

    return script


async def asked(pool: Pool, url: str, body: bytes = b"{}") -> Wire:
    wire = await pool.wire(url)
    wire.ask(head_of(url, "/v1/completions", "key"), body)
    await wire.begun()
    return wire


async def rest(wire: Wire) -> bytes:
    parts: list[bytes] = []
    while part := await wire.read():
        parts.append(part)
    return b"".join(parts)


async def test_a_connection_is_used_again_for_the_next_request() -> None:
    async with replica(answering(WHOLE, WHOLE, WHOLE)) as (pool, url, server):
        for _ in range(3):
            wire = await asked(pool, url)
            assert wire.status == 200
            assert wire.headers[b"x-name"] == b"One"
            assert await rest(wire) == b"hello"
            wire.close()
    assert server.connections == 1


@pytest.mark.parametrize("size", [10, JOINED_BYTES, 1 << 20])
async def test_a_body_of_any_size_arrives_whole(size: int) -> None:
    bodies: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        bodies.append(await request(reader))
        writer.write(WHOLE)
        await writer.drain()

    async with replica(script) as (pool, url, _):
        assert await rest(await asked(pool, url, b"x" * size)) == b"hello"
    assert bodies == [b"x" * size]


async def test_chunks_are_read_as_they_come() -> None:
    go = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(CHUNKED + b"1\r\na\r\n1\r\nb\r\n")
        await go.wait()
        writer.write(b"1\r\nc\r\n0\r\n\r\n")
        await writer.drain()
        await reader.read()

    async with replica(script) as (pool, url, _):
        wire = await asked(pool, url)
        assert await wire.read() == b"ab"
        go.set()
        assert await wire.read() == b"c"
        assert await wire.read() == b""
        wire.close()
        assert await pool.wire(url) is wire


async def test_an_announcement_before_the_answer_is_passed_over() -> None:
    async with replica(answering(b"HTTP/1.1 100 Continue\r\nx-name: No\r\n\r\n" + WHOLE)) as (pool, url, _):
        wire = await asked(pool, url)
        assert (wire.status, wire.headers[b"x-name"], await rest(wire)) == (200, b"One", b"hello")


async def test_an_answer_of_no_length_ends_with_its_connection() -> None:
    async with replica(answering(UNSIZED + b"all of it")) as (pool, url, _):
        assert await rest(await asked(pool, url)) == b"all of it"


@pytest.mark.parametrize("cut", [CHUNKED + b"5\r\nhello\r\n", WHOLE[:-2].replace(b"5", b"7")])
async def test_what_came_before_a_connection_broke_is_read_before_the_failure(cut: bytes) -> None:
    async with replica(answering(cut)) as (pool, url, _):
        wire = await asked(pool, url)
        assert (await wire.read()).startswith(b"hel")
        with pytest.raises(WireError, match="closed"):
            await rest(wire)


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 101 Switching\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"x" * (2 * HEAD_BYTES),
        CHUNKED + b"1;" + b"x" * (2 * HEAD_BYTES),
    ],
)
async def test_what_is_no_answer_is_a_failure_and_holds_little(answer: bytes) -> None:
    async with replica(answering(answer)) as (pool, url, _):
        wire = await pool.wire(url)
        wire.ask(head_of(url, "/v1/completions", "key"), b"{}")
        with pytest.raises(WireError, match="no answer"):
            await rest(wire)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello",
        WHOLE + WHOLE,
        UNSIZED + b"hello",
    ],
)
async def test_a_connection_that_may_not_be_kept_is_not_used_again(answer: bytes) -> None:
    async with replica(answering(answer)) as (pool, url, server):
        for _ in range(2):
            wire = await asked(pool, url)
            assert await rest(wire) == b"hello"
            wire.close()
    assert server.connections == 2


async def test_an_answer_that_was_not_read_to_its_end_ends_its_connection() -> None:
    gone = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(CHUNKED + b"1\r\na\r\n")
        await reader.read()
        gone.set()

    async with replica(script) as (pool, url, _):
        wire = await asked(pool, url)
        wire.close()
        async with asyncio.timeout(5):
            await gone.wait()


async def test_a_reader_that_waits_lets_the_replica_wait() -> None:
    written = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        await request(reader)
        writer.write(CHUNKED)
        while True:
            writer.write(b"400\r\n" + b"x" * 1024 + b"\r\n")
            await writer.drain()
            written += 1024

    async with replica(script) as (pool, url, _):
        wire = await asked(pool, url)
        before = -1
        while written != before:
            before = written
            await asyncio.sleep(0.1)
        assert wire._size < 4 * READ_BUFFER_BYTES
        assert not wire.is_silent(since=float("inf")), "what nobody reads is not waited for"
        taken = 0
        while taken <= before:
            taken += len(await wire.read())
        wire.close()


async def test_a_silent_replica_is_waited_for_no_longer_than_anybody_would() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        await reader.read()

    async with replica(script) as (pool, url, _):
        wire = await pool.wire(url)
        wire.ask(head_of(url, "/v1/completions", "key"), b"{}")
        pool.look(wire.heard + SILENCE_SECONDS)
        waiting = asyncio.create_task(wire.begun())
        await asyncio.sleep(0)
        assert not waiting.done()
        pool.look(wire.heard + SILENCE_SECONDS + 1)
        with pytest.raises(WireSilent):
            await waiting


async def test_a_connection_is_not_kept_for_longer_than_replicas_keep_it() -> None:
    async with replica(answering(WHOLE, WHOLE)) as (pool, url, server):
        wire = await asked(pool, url)
        await rest(wire)
        wire.close()
        pool.look(wire.heard + KEEPALIVE_SECONDS)
        assert not wire.usable
        assert await rest(await asked(pool, url)) == b"hello"
    assert server.connections == 2


async def test_a_connection_that_the_replica_closed_is_not_used_again() -> None:
    async with replica(answering(WHOLE)) as (pool, url, server):
        for number in (1, 2):
            wire = await asked(pool, url)
            assert await rest(wire) == b"hello"
            wire.close()
            async with asyncio.timeout(5):
                while not wire.lost:  # noqa: ASYNC110 - the event loop says so to the connection alone
                    await asyncio.sleep(0)
            assert server.connections == number


async def test_where_nobody_listens_the_replica_never_had_the_request() -> None:
    server = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    async with Pool() as pool:
        with pytest.raises(NotConnected):
            await pool.wire(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize("url", ["unix:/run/replica", "http://", "http://host:port", "http://a\r\nb"])
async def test_a_url_that_says_no_place_is_no_connection(url: str) -> None:
    with pytest.raises(NotConnected):
        await Pool().wire(url)


def test_what_a_replica_announced_adds_no_lines_to_a_request() -> None:
    with pytest.raises(NotConnected):
        head_of("http://host", "/v1/completions", "key\r\nx: y")


def test_a_replica_may_have_its_own_scheme_port_and_prefix() -> None:
    assert address_of("https://replica.example/one/") == ("replica.example", 443, True, "replica.example", "/one")
    head = head_of("http://[::1]:9000/one", "/v1/completions", "key")
    assert head.startswith(b"POST /one/v1/completions HTTP/1.1\r\nhost: [::1]:9000\r\nauthorization: Bearer key\r\n")
