"""vLLM's own server with the same adapters preloaded, as anyone would start it: nothing of Weft's, nor of its settings.

Given alike are only base, slots, ranks and memory. Its threads are vLLM's own choice, no logits are looked at for NaN,
and no plugin is loaded.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from service.contracts.base_model import BaseModelInfo
from tests.benchmarks.serving.load import Server
from tests.conftest import free_port

SERVER = "vllm.entrypoints.launchers.api_server.entry"
"""What `vllm serve` runs."""
START_SECONDS = 240
MAX_RANK, KV_CACHE_BYTES = 64, 1 << 28
"""As in the stack beside it."""


@asynccontextmanager
async def naked_vllm(
    folder: Path, base: BaseModelInfo, adapters: dict[str, dict[str, bytes]], max_loras: int
) -> AsyncIterator[Server]:
    """Serves `adapters`, given as their files by name, until the block ends."""
    port = free_port()
    modules = [f"{name}={_written(folder / name, files)}" for name, files in adapters.items()]
    command = [
        *(sys.executable, "-m", SERVER, "--model", base.source, "--served-model-name", base.name),
        *("--host", "127.0.0.1", "--port", str(port), "--max-model-len", str(base.context_length)),
        *("--enable-lora", "--max-loras", str(max_loras), "--max-cpu-loras", str(max(max_loras, len(adapters)))),
        *("--max-lora-rank", str(MAX_RANK), "--kv-cache-memory-bytes", str(KV_CACHE_BYTES)),
        *("--disable-uvicorn-access-log", "--lora-modules", *modules),
    ]
    with (folder / "vllm.log").open("wb") as log:
        process = subprocess.Popen(command, env=_environment(), stdout=log, stderr=log, cwd="/", start_new_session=True)
    server = Server(f"http://127.0.0.1:{port}")
    try:
        await _healthy(server, process, folder / "vllm.log")
        yield server
    finally:
        _end(process)


def _environment() -> dict[str, str]:
    """This process's, with what this machine needs: Weft's plugins are installed here, and there may be no network."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | {
        "VLLM_PLUGINS": "",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }


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
