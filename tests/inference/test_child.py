"""What the launcher takes for vLLM's death, told by its server or by there being none."""

import asyncio
import socket
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from inference.child import ChildApi
from tests.conftest import free_port
from tests.inference.conftest import replica_settings


@pytest.mark.parametrize(("status", "dead"), [(200, False), (500, False), (503, True)])
async def test_a_server_says_whether_its_engine_is_gone(tmp_path: Path, status: int, dead: bool) -> None:
    async def health(_: web.Request) -> web.Response:
        return web.Response(status=status)

    app, port = web.Application(), free_port()
    app.router.add_get("/health", health)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    async with aiohttp.ClientSession() as session:
        assert await ChildApi(replica_settings("http://127.0.0.1:1", tmp_path, port=port), session).dead() is dead
    await runner.cleanup()


async def test_where_nobody_listens_it_is_over(tmp_path: Path) -> None:
    async with aiohttp.ClientSession() as session:
        assert await ChildApi(replica_settings("http://127.0.0.1:1", tmp_path, port=free_port()), session).dead()


async def test_one_that_listens_and_is_too_busy_to_answer_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.child._PROBE_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as busy:
        async with aiohttp.ClientSession() as session:
            api = ChildApi(replica_settings("http://127.0.0.1:1", tmp_path, port=busy.getsockname()[1]), session)
            assert not await asyncio.wait_for(api.dead(), 5)
