"""What the embedded stack consists of: each part's command, its whole environment, and how to see that it is ready.

Parts get an environment made here, and of the operator's only their own settings that are not decided here. Secrets
travel in it, never in arguments.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from pydantic_settings import BaseSettings

from deploy.local import objectstore, postgres
from deploy.local.children import Part
from deploy.local.folder import DataFolder
from deploy.local.secrets import Secrets
from inference.settings import ReplicaSettings
from service.contracts.base_model import BaseModelInfo
from service.contracts.store import ObjectStore, StoreError
from service.settings import ServiceSettings
from trainer.settings import TrainerSettings

PASSED_ON = (
    "PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR",
    "HF_HOME", "HF_HUB_CACHE", "HF_TOKEN", "CUDA_VISIBLE_DEVICES",
)  # fmt: skip
TRAINER_READY, TRAINER_SETBACK = b"engine ready after", b"engine ended"
REPLICA_READY, REPLICA_SETBACK = b"vLLM ready after", b"before it was ready"
"""What the two write about their children: the trainer has no address to ask, and both outlive failures below them."""
SMALL_PARAMETERS = 50_000_000
PROBE_TIMEOUT = aiohttp.ClientTimeout(total=6)

Probe = Callable[[], Awaitable[bool]]


@dataclass(frozen=True)
class ReplicaNames:
    """What one of several replicas is called: its part, its id in the service, its cache in the data folder."""

    part: str
    id: str
    cache: str

    @classmethod
    def of(cls, number: int) -> "ReplicaNames":
        """The first one, number 1, is called as if there were no other."""
        suffix = "" if number == 1 else f"-{number}"
        return cls(f"replica{suffix}", f"local{suffix}", f"adapters{suffix}")


def internal_parts(replicas: int) -> list[str]:
    """The parts that need a port of their own beside the service."""
    return ["objects", *(ReplicaNames.of(number).part for number in range(1, replicas + 1))]


@dataclass(frozen=True)
class Stack:
    """Everything that decides how this stack's processes are started."""

    folder: DataFolder
    ports: dict[str, int]
    secrets: Secrets
    base: BaseModelInfo

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['service']}"

    def database(self) -> tuple[Part, postgres.Postgres]:
        """Blocks for seconds the first time. Raises RuntimeError where the folder cannot be made."""
        server = postgres.prepare(self.folder.postgres, self.secrets)
        return (
            Part(
                "postgres", server.argv, self._environment(), server.ready, user=server.user or "",
                stop_signal=signal.SIGINT, stop_seconds=4.0,
            ),
            server,
        )  # fmt: skip

    def objects(self) -> Part:
        store = objectstore.prepare(self.folder.objects, self.ports["objects"], self.secrets)
        return Part(
            "objects", store.argv, self._environment(**store.env), _store_answers(ObjectStore(store.settings)),
            stop_seconds=2.0,
        )  # fmt: skip

    def service(self, server: postgres.Postgres) -> Part:
        store = objectstore.prepare(self.folder.objects, self.ports["objects"], self.secrets).settings
        environment = _chosen_by_operator(ServiceSettings) | self._environment(
            WEFT_PORT=str(self.ports["service"]),
            WEFT_DATABASE_URL=server.url("weft_api"),
            WEFT_CONTROL_DATABASE_URL=server.url("weft_control"),
            WEFT_STORE__ENDPOINT=store.endpoint or "",
            WEFT_STORE__BUCKET=store.bucket,
            WEFT_STORE__ACCESS_KEY=self.secrets.store_access_key,
            WEFT_STORE__SECRET_KEY=self.secrets.store_secret_key,
            WEFT_BASE_MODELS=f"[{self.base.model_dump_json()}]",
            WEFT_ADMIN_KEY=self.secrets.admin_key,
            WEFT_WORKER_TOKEN=self.secrets.worker_token,
            WEFT_REPLICA_TOKEN=self.secrets.replica_token,
            WEFT_SECRET=self.secrets.secret,
            WEFT_SPOOL_DIR=str(self.folder.root / "spool"),
        )
        return Part("service", _python("service"), environment, _answers(f"{self.url}/healthz"), stop_seconds=2.5)

    def trainer(self) -> Part:
        log = self.folder.log("trainer")
        environment = _chosen_by_operator(TrainerSettings) | self._environment(
            WEFT_TRAINER_SERVICE_URL=self.url,
            WEFT_TRAINER_WORKER_TOKEN=self.secrets.worker_token,
            WEFT_TRAINER_BASE_MODEL=self.base.name,
            WEFT_TRAINER_BASE_SOURCE=self.base.source,
            WEFT_TRAINER_BASE_FINGERPRINT=self.base.fingerprint,
            WEFT_TRAINER_WORK_DIR=str(self.folder.root / "trainer"),
            WEFT_TRAINER_STOP_SECONDS="4",
        )
        return Part(
            "trainer",
            _python("trainer"),
            environment,
            _true(_mentions(log, TRAINER_READY)),
            setbacks=_mentions(log, TRAINER_SETBACK),
            stop_seconds=6.0,
        )

    def replica(self, number: int = 1) -> Part:
        names = ReplicaNames.of(number)
        port, log = self.ports[names.part], self.folder.log(names.part)
        environment = (
            self._small_cache()
            | _chosen_by_operator(ReplicaSettings)
            | self._environment(
                WEFT_REPLICA_SERVICE_URL=self.url,
                WEFT_REPLICA_REPLICA_TOKEN=self.secrets.replica_token,
                WEFT_REPLICA_REPLICA_ID=names.id,
                WEFT_REPLICA_PORT=str(port),
                WEFT_REPLICA_BASE_MODEL=self.base.name,
                WEFT_REPLICA_BASE_SOURCE=self.base.source,
                WEFT_REPLICA_BASE_FINGERPRINT=self.base.fingerprint,
                WEFT_REPLICA_CONTEXT_LENGTH=str(self.base.context_length),
                WEFT_REPLICA_CACHE_DIR=str(self.folder.private(names.cache)),
            )
        )
        return Part(
            names.part,
            _python("inference"),
            environment,
            self._completions_succeed(port, _mentions(log, REPLICA_READY)),
            setbacks=_mentions(log, REPLICA_SETBACK),
            stop_seconds=8.0,
        )

    def _small_cache(self) -> dict[str, str]:
        """A tiny base needs little room for keys and values, and the rest of a small machine's memory is wanted."""
        small = self.base.parameters is not None and self.base.parameters < SMALL_PARAMETERS
        return {"WEFT_REPLICA_KV_CACHE_GIB": "0.25"} if small else {}

    def _completions_succeed(self, port: int, readies: Callable[[], int]) -> Probe:
        """The service takes a replica's word for it, which may be the last word of one that was killed just before,
        and does not say which one it means.
        """
        service, replica = _answers(f"{self.url}/readyz"), _listens(port)

        async def probe() -> bool:
            return readies() > 0 and await replica() and await service()

        return probe

    def _environment(self, **own: str) -> dict[str, str]:
        passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        temporary = str(self.folder.temporary)
        return passed | {"TMPDIR": temporary, "PYTHONUNBUFFERED": "1", "HF_HUB_DISABLE_TELEMETRY": "1"} | own


def _chosen_by_operator(settings: type[BaseSettings]) -> dict[str, str]:
    """What is set outside of a part's own settings, nested ones too. Other names of the same prefix are not its."""
    prefix = settings.model_config.get("env_prefix", "")
    names = {f"{prefix}{field}".upper() for field in settings.model_fields}
    return {name: value for name, value in os.environ.items() if name.partition("__")[0] in names}


def _python(package: str) -> list[str]:
    return [sys.executable, "-m", package]


def _answers(url: str) -> Probe:
    async def probe() -> bool:
        try:
            async with aiohttp.ClientSession(timeout=PROBE_TIMEOUT) as session, session.get(url) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    return probe


def _listens(port: int) -> Probe:
    async def probe() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        return True

    return probe


def _store_answers(store: ObjectStore) -> Probe:
    async def probe() -> bool:
        try:
            await asyncio.to_thread(store.ensure_bucket)
        except StoreError:
            return False
        return True

    return probe


def _true(count: Callable[[], int]) -> Probe:
    async def probe() -> bool:
        return count() > 0

    return probe


def _mentions(log: Path, words: bytes) -> Callable[[], int]:
    """How often a part has written `words` since now."""
    start = log.stat().st_size if log.exists() else 0

    def count() -> int:
        if not log.exists():
            return 0
        with log.open("rb") as file:
            file.seek(start)
            return file.read().count(words)

    return count
