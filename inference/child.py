"""vLLM as a child process: started in a group of its own, asked whether it lives, ended with all that it started."""

import asyncio
import contextlib
import json
import math
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import aiohttp
from pydantic import ValidationError

from inference.engine import die_with_parent
from inference.settings import ReplicaSettings
from service.contracts.replica import TENANT_HEADER, AdapterRef, ReplicaStatus

_PROBE_SECONDS = 2.0
_PROGRESS = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:iteration_tokens_total_count")
_UNREACHABLE = (aiohttp.ClientError, TimeoutError)
_CLOSED = 0
_BUSY = frozenset({401, 404, 429, 503})
"""Answers that do not come from the engine."""
_CANARY = "weft-canary"
"""A tenant of its own, for which a place inside vLLM is kept however busy it is."""
_PROC = Path("/proc")


class Child:
    """One life of vLLM. API server and engine share the process group, so ending the group leaves nothing behind."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, command: Sequence[str], environment: dict[str, str]) -> "Child":
        process = await asyncio.create_subprocess_exec(
            *command,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

    def engine_seconds(self) -> float | None:
        """Processor time of the group but its API server; None where the system does not tell."""
        return _group_seconds(self.pid)

    async def exited(self) -> int:
        """Waits for the API server's end. vLLM exits 0 after an engine's death, so the code means nothing."""
        return await self._process.wait()

    async def stop(self, seconds: float) -> None:
        """SIGTERM to the group, SIGKILL to what is left of it after `seconds`."""
        _signal_group(self.pid, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._process.wait()
                while _group_lives(self.pid):  # noqa: ASYNC110 - the kernel tells nobody when a group empties
                    await asyncio.sleep(0.05)
        _signal_group(self.pid, signal.SIGKILL)
        await self._process.wait()


class ChildApi:
    """The launcher's view of its own vLLM over HTTP."""

    def __init__(self, settings: ReplicaSettings, session: aiohttp.ClientSession) -> None:
        self._url = f"http://{settings.host}:{settings.port}"
        self._base_model = settings.base_model
        self._session = session
        self._headers = {"Authorization": f"Bearer {settings.api_key.get_secret_value()}"}

    async def healthy(self) -> bool:
        return await self._health() == 200

    async def dead(self) -> bool:
        """Whether vLLM says that its engine is gone, or listens no more, since what it then waits for may never end.

        No answer is no word.
        """
        return await self._health() in (503, _CLOSED)

    async def status(self) -> ReplicaStatus | None:
        """None where the plugin does not answer, be it missing or too busy."""
        with contextlib.suppress(*_UNREACHABLE, ValidationError):
            async with self._session.get(
                f"{self._url}/v1/weft/status", headers=self._headers, timeout=_within(_PROBE_SECONDS)
            ) as response:
                return ReplicaStatus.model_validate_json(await response.read())
        return None

    async def canary(self, seconds: float) -> float | None:
        """One greedy token from the base: its log probability, NaN for an answer without one, None for no answer."""
        body = {"model": self._base_model, "prompt": "a", "max_tokens": 1, "temperature": 0, "logprobs": 1}
        headers = {**self._headers, TENANT_HEADER: _CANARY}
        with contextlib.suppress(*_UNREACHABLE):
            async with self._session.post(
                f"{self._url}/v1/completions", json=body, headers=headers, timeout=_within(seconds)
            ) as response:
                answer = await response.read()
                return _first_logprob(answer) if response.status not in _BUSY else None
        return None

    async def tokens_done(self) -> float | None:
        """How far the engine has come, from vLLM's own counters; None where they cannot be read."""
        with contextlib.suppress(*_UNREACHABLE):
            async with self._session.get(f"{self._url}/metrics", timeout=_within(_PROBE_SECONDS)) as response:
                lines = (await response.text()).splitlines()
                return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(_PROGRESS))
        return None

    async def _health(self) -> int | None:
        """The status; _CLOSED where nobody listens, None where no answer comes."""
        try:
            async with self._session.get(f"{self._url}/health", timeout=_within(_PROBE_SECONDS)) as response:
                return response.status
        except aiohttp.ClientConnectorError:
            return _CLOSED
        except _UNREACHABLE:
            return None

    async def evict(self, adapter: str) -> bool:
        body = AdapterRef(adapter_id=adapter).model_dump()
        with contextlib.suppress(*_UNREACHABLE):
            async with self._session.post(
                f"{self._url}/v1/weft/adapters/evict", json=body, headers=self._headers, timeout=_within(60.0)
            ) as response:
                return response.status == 200
        return False


def _within(seconds: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=seconds)


def _first_logprob(answer: bytes) -> float:
    try:
        logprob = json.loads(answer)["choices"][0]["logprobs"]["token_logprobs"][0]
        return float(logprob)
    except (ValueError, LookupError, TypeError):
        return math.nan


def _group_seconds(group: int) -> float | None:
    """Of a process group without its leader, by /proc/<pid>/stat; processes that end meanwhile are left out."""
    if not _PROC.is_dir():
        return None
    ticks = 0
    for folder in _PROC.iterdir():
        if not folder.name.isdecimal() or int(folder.name) == group:
            continue
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


def _group_lives(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    return True
