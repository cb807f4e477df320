"""The replica's configuration, from the environment (prefix `WEFT_REPLICA_`): the launcher's and the plugin's."""

import os
from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class ReplicaSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="WEFT_REPLICA_", frozen=True, extra="forbid")

    service_url: str
    replica_token: SecretStr
    replica_id: str = Field(min_length=1, max_length=64)
    api_key: SecretStr = Field(default=SecretStr(""), description="Set by the launcher for its vLLM child.")
    host: str = "127.0.0.1"
    port: int
    public_url: str = Field(default="", description="What the gateway calls, where it is not http://{host}:{port}.")
    base_model: str
    base_source: str
    base_fingerprint: str
    context_length: int
    cache_dir: Path
    max_loras: int = Field(default=8, ge=1)
    max_cpu_loras: int = Field(default=64, ge=1)
    max_lora_rank: int = Field(default=64, ge=1)
    cache_bytes: int = Field(default=8 << 30, description="Disk budget of the adapter cache.")
    hold_seconds: float = Field(default=30.0, gt=0, description="Longest wait of a request for its adapter and slot.")
    max_in_flight: int = Field(
        default=128, ge=1, description="Requests inside vLLM at once; no more than its --max-num-seqs is of use."
    )
    tenant_in_flight: int = Field(default=64, ge=1, description="Of these, one tenant's at most.")
    queue_limit: int = Field(default=512, ge=1, description="Requests that may wait for their turn.")
    tenant_queue_limit: int = Field(default=256, ge=1, description="Of these, one tenant's at most.")
    queue_bytes: int = Field(
        default=128 << 20,
        ge=1,
        description="Bytes of requests that may wait for their turn; twice that with those of tenants that wait alone.",
    )
    tenant_queue_bytes: int = Field(default=64 << 20, ge=1, description="Of these, one tenant's at most.")
    stint_seconds: float = Field(
        default=1.0, ge=0, description="How long an adapter keeps its slot while others wait for one."
    )
    max_body_bytes: int = Field(default=8 << 20, ge=1 << 10)
    kv_cache_gib: float = Field(default=1.0, gt=0, description="Only for vLLM on CPUs.")
    threads: str = Field(default="auto", description="VLLM_CPU_OMP_THREADS_BIND; only for vLLM on CPUs.")
    tool_parser: str = Field(
        default="auto",
        pattern=r"^[A-Za-z0-9_.-]+$",
        description="vLLM's --tool-call-parser for the base; auto goes by its chat template, none takes no calls.",
    )
    extra_args: tuple[str, ...] = ()
    heartbeat_seconds: float = 2.0
    canary_seconds: float = Field(default=3.0, gt=0, description="Between two one-token canaries on the base.")
    hang_seconds: float = Field(
        default=5.0, gt=0, description="An engine that neither brings forth tokens nor computes for so long is hung."
    )
    stall_seconds: float = Field(
        default=30.0,
        gt=0,
        description="How long an answer may wait for a reader that takes less than 1 KiB a second of it.",
    )
    drain_seconds: float = Field(default=6.0, ge=0, description="Longest wait for answers in flight after SIGTERM.")
    restarts: int = Field(default=0, ge=0, description="Set by the launcher for its vLLM child.")
    start_timeout_seconds: float = 600.0
    fetch_timeout_seconds: float = 60.0

    @model_validator(mode="after")
    def _one_request_fits(self) -> Self:
        if min(self.queue_bytes, self.tenant_queue_bytes) < self.max_body_bytes:
            raise ValueError("queue_bytes and tenant_queue_bytes must be at least max_body_bytes")
        return self

    def for_child(self) -> dict[str, str]:
        """This process's environment with these very settings in it, for the plugin inside vLLM to read back."""
        own = {
            f"{self.model_config.get('env_prefix')}{name}".upper(): _as_variable(value)
            for name, value in self.model_dump(exclude={"extra_args"}).items()
        }
        return {**os.environ, **own}


def _as_variable(value: object) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)
