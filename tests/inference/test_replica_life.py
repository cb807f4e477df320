"""The processes of a replica: killed, hung or told to stop, they come back or go, and nothing of them is left.

The tests share one replica and run in order; the last one ends it.
"""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import aiohttp
import psutil
import pytest

from tests.conftest import free_port
from tests.inference.conftest import replica_settings
from tests.inference.running import Replica, chat, publish, started

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]


async def restarted(replica: Replica, since: int) -> None:
    await replica.until_state("starting", since)
    after = next(n for n, beat in enumerate(replica.service.heartbeats) if n >= since and beat.state == "starting")
    await replica.until_state("ready", after)
    (hot,) = publish(replica, 1)
    async with asyncio.timeout(10):
        while (await replica.status())["adapters"].get(hot) == "disk":  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert (await replica.chat(hot))[1] in ("gpu", "cpu"), "what was hot is loaded again before it is asked for"


async def test_killed_engine_comes_back(ready: Replica) -> None:
    (hot,) = publish(ready, 1)
    await ready.chat(hot)
    hottest = ready.cache.parent / "hottest.json"
    await ready.until(lambda: hottest.exists() and hot in hottest.read_text(), "written down", 10)
    since = len(ready.service.heartbeats)
    ready.engine().kill()
    await restarted(ready, since)


async def test_killed_api_server_comes_back(ready: Replica) -> None:
    since = len(ready.service.heartbeats)
    engine = ready.engine()
    ready.api_server().kill()
    await restarted(ready, since)
    assert not engine.is_running()


async def test_hung_engine_is_replaced(ready: Replica) -> None:
    since = len(ready.service.heartbeats)
    engine = ready.engine()
    waiting = await started(ready, chat("base", 200, stream=True))
    began = time.monotonic()
    engine.suspend()
    await ready.until_state("down", since)
    found = time.monotonic() - began
    with pytest.raises(aiohttp.ClientError):
        await waiting.read()
    print(f"told to the service {found:.1f} s after the hang, who waits let go after {time.monotonic() - began:.1f} s")
    assert found < 12
    assert time.monotonic() - began < 15, "whoever waits on it can go to another replica"
    await restarted(ready, since)
    assert not engine.is_running()


async def test_killed_launcher_takes_vllm_along(ready: Replica, tmp_path: Path) -> None:
    """A second replica, so that the shared one lives on."""
    settings = replica_settings("http://127.0.0.1:9", tmp_path, port=free_port())
    with (tmp_path / "log").open("wb") as output:
        launcher = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "inference", env=settings.for_child(), stdout=output, stderr=output
        )
    await ready.until(lambda: len(psutil.Process(launcher.pid).children()) == 1, "started", 30)
    (child,) = psutil.Process(launcher.pid).children()
    launcher.kill()
    await launcher.wait()
    await ready.until(lambda: not child.is_running(), "gone", 10)


async def test_sigterm_leaves_no_process(ready: Replica) -> None:
    processes = ready.processes()
    group = ready.api_server().pid
    long = asyncio.create_task(ready.chat("base", 100))
    await asyncio.sleep(0.2)
    ready.process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(10):
        assert await ready.process.wait() == 0
    assert len((await long)[0]) == 100, "a request in flight is answered before vLLM ends"
    assert ready.now.state == "draining"
    assert ready.service.deregistered == 1
    assert not any(process.is_running() for process in processes)
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)
