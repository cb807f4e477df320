"""What is compared, each in a process of its own over the same fixed upstream: Weft's service, a naked proxy, LiteLLM.

The service is the whole one as `weftd up` starts it, with its database and storage; the upstream is its one replica.
"""

import asyncio
import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from random import Random

import aiohttp
import psutil

from deploy.local import tiny_base
from deploy.local.base_model import TINY
from service.contracts.manifest import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from tests.benchmarks.gateway.load import Server
from tests.benchmarks.serving.shop import Shop
from tests.benchmarks.training.platform import Platform, running
from tests.conftest import free_port

ROOT = Path(__file__).parents[3]
MINUTE = 2_000_000
"""The project's requests per minute. High, but counted; its tokens likewise."""
START_SECONDS = 60.0
LITELLM_KEY = "sk-litellm"


@contextlib.asynccontextmanager
async def process(argv: list[str], log: Path, variables: Mapping[str, str] | None = None) -> AsyncGenerator[int]:
    """The process's id, ended with the block."""
    with log.open("wb") as output:
        made = await asyncio.create_subprocess_exec(
            *argv, stdout=output, stderr=output, cwd=ROOT, env={**os.environ, **(variables or {})}
        )
    try:
        yield made.pid
    finally:
        made.terminate()
        try:
            await asyncio.wait_for(made.wait(), 10)
        except TimeoutError:
            made.kill()
            await made.wait()


async def answers(port: int, path: str = "/health") -> None:
    """Returns once something does there."""
    deadline = time.monotonic() + START_SECONDS
    async with aiohttp.ClientSession(trust_env=False) as session:
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"http://127.0.0.1:{port}{path}"):
                    return
            if time.monotonic() > deadline:
                raise RuntimeError(f"nothing answers on port {port}")
            await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def upstream(folder: Path) -> AsyncGenerator[Server]:
    port = free_port()
    argv = [sys.executable, "-m", "tests.benchmarks.gateway.upstream", str(port)]
    async with process(argv, folder / "upstream.log") as pid:
        await answers(port)
        yield Server("upstream", port, "none", TINY, pid)


@contextlib.asynccontextmanager
async def naked(folder: Path, behind: Server) -> AsyncGenerator[Server]:
    port = free_port()
    argv = [sys.executable, "-m", "tests.benchmarks.gateway.naked", str(port), f"http://127.0.0.1:{behind.port}"]
    async with process(argv, folder / "naked.log") as pid:
        await answers(port)
        yield Server("naked", port, "none", TINY, pid)


@contextlib.asynccontextmanager
async def litellm(folder: Path, behind: Server) -> AsyncGenerator[Server | None]:
    """LiteLLM's proxy with a key and one worker, or None where it is not installed. LITELLM names its command."""
    command = os.environ.get("LITELLM") or shutil.which("litellm")
    if command is None:
        yield None
        return
    port = free_port()
    model = {"model": f"openai/{TINY}", "api_base": f"http://127.0.0.1:{behind.port}/v1", "api_key": "none"}
    config = {
        "model_list": [{"model_name": TINY, "litellm_params": model}],
        "litellm_settings": {"telemetry": False, "num_retries": 0},
        "general_settings": {"master_key": LITELLM_KEY},
    }
    (folder / "litellm.yaml").write_text(json.dumps(config))
    argv = [command, "--config", str(folder / "litellm.yaml"), "--host", "127.0.0.1", "--port", str(port)]
    variables = {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "*"}
    async with process(argv, folder / "litellm.log", variables) as pid:
        await answers(port, "/health/liveliness")
        yield Server("litellm", port, LITELLM_KEY, TINY, pid)


@contextlib.asynccontextmanager
async def weft(folder: Path, behind: Server) -> AsyncGenerator[Server]:
    """With one project that has limits and a budget of its own, and one fine-tuned model."""
    # The one heartbeat of the replica is enough.
    os.environ.setdefault("WEFT_REPLICA_TTL_SECONDS", "3600")
    async with running(tiny_base.MODEL_DIR, folder / "weft", TINY) as platform, Shop(platform.stack.folder) as shop:
        key = platform.client("bench").api_key
        stall = await shop.stall(platform.stack.url, key)
        files = {
            ADAPTER_CONFIG: json.dumps({"r": 8, "lora_alpha": 8, "target_modules": ["q_proj"]}).encode(),
            ADAPTER_WEIGHTS: Random(0).randbytes(1 << 10),
        }
        ware = await shop.put_on_sale(stall, "demo", files)
        await _limited(platform, stall.project)
        await _announced(platform, shop, behind)
        yield Server("weft", platform.stack.ports["service"], key, ware.model, _service(), limited=True)


async def _limited(platform: Platform, project: str) -> None:
    limits = f"max_requests_per_minute = {MINUTE}, max_tokens_per_minute = {MINUTE * 1000}, monthly_budget_cents = 1000"
    await platform.fetch(f"update projects set {limits} where id = $1", project)


async def _announced(platform: Platform, shop: Shop, behind: Server) -> None:
    beat = {
        "url": f"http://127.0.0.1:{behind.port}", "api_key": "k" * 32, "base_model": TINY, "state": "ready",
        "base_fingerprint": shop.base.fingerprint, "max_loras": 8, "max_lora_rank": 64, "context_length": 1024,
    }  # fmt: skip
    headers = {"authorization": f"Bearer {platform.stack.secrets.replica_token}"}
    address = f"{platform.stack.url}/internal/replicas/bench"
    async with aiohttp.ClientSession(headers=headers) as session, session.put(address, json=beat) as answer:
        if answer.status != 200:
            raise RuntimeError(await answer.text())


def _service() -> int:
    """Of this process's own children."""
    found = [each for each in psutil.Process().children(recursive=True) if each.cmdline()[-2:] == ["-m", "service"]]
    if len(found) != 1:
        raise RuntimeError(f"{len(found)} services run")
    return found[0].pid
