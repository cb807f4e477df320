"""Keeps one vLLM alive and the service informed. No torch here: this process must outlive whatever vLLM does.

starting ── health, plugin and a first token ──► ready ── exit, or the watch's alarm ──► down ── backoff ──► starting
    any ── SIGTERM ──► draining ── requests done or time up ──► vLLM's process group ended ──► gone
"""

import asyncio
import math
import os
import secrets
import signal
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

import aiohttp
from pydantic import SecretStr

from inference.announcer import Announcer
from inference.child import Child, ChildApi
from inference.command import arguments, environment, runs_on_cpu
from inference.settings import ReplicaSettings
from inference.watch import Watch

T = TypeVar("T")

STOP_SECONDS = 2.0
CANARY_SECONDS = 10.0
_POLL_SECONDS = 0.2
_BACKOFF_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_STEADY_SECONDS = 60.0
"""A life that was ready for so long resets the backoff."""


class Launcher:
    def __init__(self, settings: ReplicaSettings) -> None:
        key = settings.api_key if settings.api_key.get_secret_value() else SecretStr(secrets.token_urlsafe(32))
        self._settings = settings.model_copy(update={"api_key": key})
        self._cpu = runs_on_cpu()
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Returns after SIGTERM or SIGINT, with no process left."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        timeout = aiohttp.ClientTimeout(total=5.0)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            api = ChildApi(self._settings, session)
            announcer = Announcer(self._settings, session, api)
            heartbeats = asyncio.create_task(announcer.run())
            try:
                await self._lives(api, announcer)
            finally:
                heartbeats.cancel()
                await asyncio.gather(heartbeats, return_exceptions=True)
                await announcer.leave()
        _say("gone")

    async def _lives(self, api: ChildApi, announcer: Announcer) -> None:
        failures = lives = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            announcer.tell("starting")
            _say("starting vLLM")
            child = await self._start(lives)
            lives += 1
            try:
                ready = await self._live(child, api, announcer, began)
                if self._stopping.is_set():
                    await self._drain(api, announcer)
            finally:
                if not self._stopping.is_set():
                    announcer.tell("down")
                await child.stop(STOP_SECONDS)
            failures = 0 if ready and time.monotonic() - began > _STEADY_SECONDS else failures + 1
            if not self._stopping.is_set():
                await self._pause(_BACKOFF_SECONDS[min(failures, len(_BACKOFF_SECONDS) - 1)])

    async def _start(self, restarts: int) -> Child:
        inherited = self._settings.model_copy(update={"restarts": restarts}).for_child()
        cores = len(os.sched_getaffinity(0))
        variables = environment(self._settings, inherited, cpu=self._cpu, cores=cores)
        return await Child.start(arguments(self._settings, cpu=self._cpu), variables)

    async def _live(self, child: Child, api: ChildApi, announcer: Announcer, began: float) -> bool:
        """One life, until vLLM ends, stops answering, or the launcher is told to stop. Whether it was ever ready."""
        exit_ = asyncio.create_task(child.exited())
        try:
            first = await self._first(exit_, self._becomes_ready(api))
            if first is None:
                _say(f"vLLM {_ended(exit_, 'it took too long')} before it was ready", began)
                return False
            announcer.tell("ready")
            _say("vLLM ready", began)
            failure = await self._first(exit_, Watch(child, api, self._settings, first).failure())
            if not self._stopping.is_set():
                _say(f"vLLM {_ended(exit_, failure or 'ended')}; restarting", began)
            return True
        finally:
            exit_.cancel()

    async def _first(self, exit_: asyncio.Task[int], work: Coroutine[Any, Any, T]) -> T | None:
        """The result of `work`, or None if vLLM exits or the launcher is stopped first."""
        task, stop = asyncio.create_task(work), asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({exit_, task, stop}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            task.cancel()
            stop.cancel()

    async def _becomes_ready(self, api: ChildApi) -> float | None:
        """The first canary's answer: health alone proves neither the plugin nor the engine."""
        deadline = time.monotonic() + self._settings.start_timeout_seconds
        while time.monotonic() < deadline:
            if await api.healthy() and await api.status() is not None:
                logprob = await api.canary(CANARY_SECONDS)
                if logprob is not None and math.isfinite(logprob):
                    return logprob
            await asyncio.sleep(_POLL_SECONDS)
        return None

    async def _drain(self, api: ChildApi, announcer: Announcer) -> None:
        announcer.tell("draining")
        _say("draining")
        await announcer.heartbeat()
        deadline = time.monotonic() + self._settings.drain_seconds
        while time.monotonic() < deadline:
            status = await api.status()
            if status is None or not (status.in_flight or status.waiting):
                return
            await asyncio.sleep(_POLL_SECONDS)

    async def _pause(self, seconds: float) -> None:
        stop = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({stop}, timeout=seconds)
        stop.cancel()


def _ended(exit_: asyncio.Task[int], otherwise: str) -> str:
    return f"exited with {exit_.result()}" if exit_.done() else f"is to be replaced: {otherwise}"


def _say(what: str, since: float | None = None) -> None:
    after = "" if since is None else f" after {time.monotonic() - since:.1f} s"
    print(f"replica: {what}{after}", flush=True)  # noqa: T201
