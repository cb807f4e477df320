"""The replica's configuration, from the environment (prefix `WEFT_REPLICA_`): the launcher's and the plugin's."""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class ReplicaSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="WEFT_REPLICA_", frozen=True, extra="forbid")

    service_url: str
    replica_token: SecretStr
    replica_id: str = Field(min_length=1, max_length=64)
    api_key: SecretStr = Field(default=SecretStr(""), description="Set by the launcher for its vLLM child.")
    host: str = "127.0.0.1"
    port: int
    base_model: str
    base_source: str
    base_fingerprint: str
    context_length: int
    cache_dir: Path
    max_loras: int = Field(default=8, ge=1)
    max_cpu_loras: int = Field(default=64, ge=1)
    max_lora_rank: int = Field(default=64, ge=1)
    cache_bytes: int = Field(default=8 << 30, description="Disk budget of the adapter cache.")
    kv_cache_gib: int = Field(default=1, ge=1, description="Only for vLLM on CPUs.")
    threads: str = Field(default="auto", description="VLLM_CPU_OMP_THREADS_BIND; only for vLLM on CPUs.")
    extra_args: tuple[str, ...] = ()
    heartbeat_seconds: float = 2.0
    canary_seconds: float = 10.0
    start_timeout_seconds: float = 600.0
    fetch_timeout_seconds: float = 60.0
