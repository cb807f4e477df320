"""The service's configuration: read once from the environment (prefix `WEFT_`), then frozen."""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.contracts.base_model import BaseModelInfo
from service.contracts.store import StoreSettings


class ServiceSettings(BaseSettings):
    """`WEFT_STORE__BUCKET` and the like set nested fields; `WEFT_BASE_MODELS` is a JSON list of BaseModelInfo."""

    model_config = SettingsConfigDict(
        env_prefix="WEFT_",
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        nested_model_default_partial_update=True,
    )

    host: str = "127.0.0.1"
    port: int = 8000
    database_url: SecretStr = Field(description="postgresql+asyncpg URL of the role that serves tenants.")
    control_database_url: SecretStr = Field(
        description="The same database as the role that schedules and authenticates."
    )
    store: StoreSettings = StoreSettings()
    base_models: tuple[BaseModelInfo, ...] = Field(min_length=1)
    organization_name: str = Field(default="weft", pattern=r"^[a-z0-9-]{1,32}$")
    admin_key: SecretStr = Field(min_length=32)
    worker_token: SecretStr = Field(min_length=32)
    replica_token: SecretStr = Field(min_length=32)
    secret: SecretStr = Field(min_length=32, description="Keys the HMACs: cache salts of tenants, cursors.")
    spool_dir: Path = Field(description="Usage rows wait here, fsynced, until the database has them.")

    lease_ttl_seconds: float = 30.0
    lease_renew_seconds: float = 5.0
    reap_seconds: float = 2.0
    max_lost_workers: int = 3
    presign_seconds: int = 900
    replica_ttl_seconds: float = 10.0
    cache_seconds: float = 10.0
    max_file_bytes: int = 512 << 20
    max_line_bytes: int = 1 << 20
    max_body_bytes: int = 4 << 20
    min_examples: int = 10
    cold_wait_seconds: float = 60.0
