"""Parts of the inference tests: a real HTTP server for the service and its storage."""

import asyncio
import json
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from aiohttp import web
from prometheus_client import CollectorRegistry
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from inference import residency
from inference import runtime as runtime_module
from inference.admission import Admission
from inference.gate import AdapterGate
from inference.registry import Engine
from inference.runtime import Runtime
from inference.settings import ReplicaSettings
from service.contracts.replica import AdapterSource, ReplicaHeartbeat, ReplicaOrders
from tests.inference.adapters import BLOCKS, FINGERPRINT, HIDDEN, INNER, LAYERS, TEMPLATE, Adapter
from tests.inference.stand_in import CHAT, KEY, Call, Client, StandIn

if TYPE_CHECKING:
    from tests.inference.running import Replica

REPLICA_TOKEN = "replica-token-0123456789"
BYTECODE = {"PYTHONPYCACHEPREFIX": str(Path(tempfile.gettempdir()) / "weft-bytecode")}
"""Kept from run to run, so that only the first one compiles vLLM's modules."""


@dataclass
class ServiceAndStorage:
    """Serves what is published to it, and the faults it is told to have."""

    url: str = ""
    adapters: dict[str, Adapter] = field(default_factory=dict)
    described: Counter[str] = field(default_factory=Counter)
    downloaded: Counter[str] = field(default_factory=Counter)
    at_once: int = 0
    most_at_once: int = 0
    slow_seconds: float = 0.0
    service_status: int | None = None
    storage_failures: int = 0
    damage: Callable[[bytes], bytes] | None = None
    cut: bool = False
    heartbeats: list[ReplicaHeartbeat] = field(default_factory=list)
    orders: ReplicaOrders = field(default_factory=ReplicaOrders)
    deregistered: int = 0

    def publish(self, adapter: Adapter) -> str:
        self.adapters[adapter.id] = adapter
        return adapter.id

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/internal/adapters/{adapter}", self._describe)
        app.router.add_put("/internal/replicas/{replica}", self._heartbeat)
        app.router.add_delete("/internal/replicas/{replica}", self._deregister)
        app.router.add_get("/objects/{adapter}/{name}", self._object)
        return app

    async def _describe(self, request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == f"Bearer {REPLICA_TOKEN}"
        adapter = request.match_info["adapter"]
        self.described[adapter] += 1
        if self.service_status is not None:
            return web.Response(status=self.service_status)
        if adapter not in self.adapters:
            return web.Response(status=404)
        manifest = self.adapters[adapter].manifest
        urls = {file.path: f"{self.url}/objects/{adapter}/{file.path}" for file in manifest.files}
        source = AdapterSource(adapter_id=adapter, manifest=manifest, urls=urls)
        return web.Response(body=source.model_dump_json(), content_type="application/json")

    async def _object(self, request: web.Request) -> web.StreamResponse:
        assert "Authorization" not in request.headers
        adapter, name = request.match_info["adapter"], request.match_info["name"]
        self.downloaded[adapter] += 1
        if self.storage_failures > 0:
            self.storage_failures -= 1
            return web.Response(status=503)
        content = self.adapters[adapter].files[name]
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self.slow_seconds)
            return await self._send(request, content)
        finally:
            self.at_once -= 1

    async def _send(self, request: web.Request, content: bytes) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(content))})
        await response.prepare(request)
        await response.write((self.damage or (lambda sound: sound))(content) if not self.cut else content[:-1])
        if self.cut and request.transport is not None:
            request.transport.close()
        return response

    async def _heartbeat(self, request: web.Request) -> web.Response:
        self.heartbeats.append(ReplicaHeartbeat.model_validate_json(await request.read()))
        return web.Response(body=self.orders.model_dump_json(), content_type="application/json")

    async def _deregister(self, request: web.Request) -> web.Response:
        self.deregistered += 1
        return web.Response(status=204)


@asynccontextmanager
async def serving(server: ServiceAndStorage) -> AsyncIterator[ServiceAndStorage]:
    runner = web.AppRunner(server.application(), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield server
    await runner.cleanup()


@pytest.fixture
async def service() -> AsyncIterator[ServiceAndStorage]:
    async with serving(ServiceAndStorage()) as server:
        yield server


@pytest.fixture
def settings(service: ServiceAndStorage, tmp_path: Path) -> ReplicaSettings:
    return replica_settings(service.url, tmp_path)


def replica_settings(service_url: str, cache: Path, **changes: Any) -> ReplicaSettings:
    plain = {
        "service_url": service_url,
        "replica_token": REPLICA_TOKEN,
        "replica_id": "replica-1",
        "api_key": "replica-key-0123456789",
        "port": 8600,
        "base_model": "base",
        "base_source": "unused",
        "base_fingerprint": FINGERPRINT,
        "context_length": 256,
        "cache_dir": cache,
    }
    return ReplicaSettings.model_validate(plain | changes)


@pytest.fixture
def gate() -> AdapterGate:
    return AdapterGate(lambda: LAYERS, lambda: TEMPLATE, base_fingerprint=FINGERPRINT, max_rank=16)


def write_base(folder: Path, seed: int = 0) -> None:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=BLOCKS,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    special = ["<|pad|>", "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    vocabulary = {token: number for number, token in enumerate(special + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|bos|>", eos_token="<|end|>", pad_token="<|pad|>"
    )
    fast.chat_template = (
        "<|bos|>{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}<|assistant|>"
    )
    fast.save_pretrained(folder)


@pytest.fixture
def vllm() -> StandIn:
    return StandIn()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, gate: AdapterGate) -> None:
    monkeypatch.setattr(residency, "ABORT_SECONDS", 0.02)
    monkeypatch.setattr(runtime_module, "AdapterGate", lambda *_, **__: gate)


def make_runtime(settings: ReplicaSettings, engine: Engine) -> Runtime:
    return Runtime(settings, engine, CollectorRegistry())


@pytest.fixture
async def small(service: ServiceAndStorage, tmp_path: Path) -> ReplicaSettings:
    return replica_settings(service.url, tmp_path, max_loras=2, max_cpu_loras=4, hold_seconds=5.0, queue_limit=40)


@pytest.fixture
async def runtime(small: ReplicaSettings, vllm: StandIn) -> AsyncIterator[Runtime]:
    runtime = make_runtime(small, vllm)
    yield runtime
    await runtime.close()
    assert vllm.deaths == []


@pytest.fixture
def call(runtime: Runtime, vllm: StandIn) -> Call:
    admission = Admission(vllm)

    def call(
        model: str = "base",
        *,
        path: str = CHAT,
        body: bytes | None = None,
        key: bytes = KEY,
        method: str = "POST",
        tenant: str | None = None,
        **fields: Any,
    ) -> Client:
        content = json.dumps({"model": model, "messages": [], **fields}).encode() if body is None else body
        return Client(admission, runtime, path, content, key, method, tenant)

    return call


@pytest.fixture(scope="module")
async def module_service() -> AsyncIterator[ServiceAndStorage]:
    async with serving(ServiceAndStorage(orders=ReplicaOrders(heartbeat_seconds=0.2))) as server:
        yield server


@pytest.fixture(scope="module")
async def replica(
    module_service: ServiceAndStorage, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator["Replica"]:
    """A whole one: the real launcher and vLLM. For tests of the marker `stack`."""
    from tests.inference.running import running_replica

    async with running_replica(module_service, tmp_path_factory.mktemp("replica")) as replica:
        yield replica


@pytest.fixture
async def ready(replica: "Replica") -> "Replica":
    await replica.until(lambda: bool(replica.service.heartbeats) and replica.now.state == "ready", "ready")
    return replica
