"""vLLM's own server with the same adapters preloaded, started as a replica starts it but without anything of Weft's."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from inference.command import arguments, environment
from inference.settings import ReplicaSettings
from service.contracts.base_model import BaseModelInfo
from tests.benchmarks.serving.load import Server
from tests.conftest import free_port

START_SECONDS = 240


@asynccontextmanager
async def naked_vllm(
    folder: Path, base: BaseModelInfo, adapters: dict[str, dict[str, bytes]], max_loras: int
) -> AsyncIterator[Server]:
    """Serves `adapters`, given as their files by name, until the block ends."""
    settings = _settings(folder, base, max_loras, len(adapters))
    modules = [f"{name}={_written(folder / name, files)}" for name, files in adapters.items()]
    command = [*_without_ours(arguments(settings, cpu=True)), "--lora-modules", *modules]
    variables = environment(settings, os.environ, cpu=True, cores=os.cpu_count() or 1)
    del variables["VLLM_API_KEY"]
    with (folder / "vllm.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=variables | {"VLLM_PLUGINS": ""}, stdout=log, stderr=log, cwd="/", start_new_session=True
        )
    server = Server(f"http://127.0.0.1:{settings.port}")
    try:
        await _healthy(server, process, folder / "vllm.log")
        yield server
    finally:
        _end(process)


def _settings(folder: Path, base: BaseModelInfo, max_loras: int, adapters: int) -> ReplicaSettings:
    return ReplicaSettings.model_validate(
        {
            "service_url": "http://127.0.0.1:1",
            "replica_token": "unused" * 8,
            "replica_id": "naked",
            "port": free_port(),
            "base_model": base.name,
            "base_source": base.source,
            "base_fingerprint": base.fingerprint,
            "context_length": base.context_length,
            "cache_dir": folder,
            "max_loras": max_loras,
            "max_cpu_loras": max(max_loras, adapters),
            "kv_cache_gib": 0.25,
        }
    )


def _without_ours(command: list[str]) -> list[str]:
    place = command.index("--middleware")
    return command[:place] + command[place + 2 :]


def _written(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


async def _healthy(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    async with aiohttp.ClientSession() as client, asyncio.timeout(START_SECONDS):
        while True:
            if process.poll() is not None:
                raise RuntimeError(f"vLLM did not start:\n{log.read_text()[-3000:]}")
            try:
                async with client.get(f"{server.url}/health") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                await asyncio.sleep(0.3)


def _end(process: subprocess.Popen[bytes]) -> None:
    """The group: the engine is a process of its own."""
    os.killpg(process.pid, 15)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.wait()
