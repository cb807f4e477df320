"""The service's configuration: read once from the environment (prefix `WEFT_`), then frozen."""

from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.contracts.base_model import BaseModelInfo
from service.contracts.servable import MAX_RANK
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
    metrics_token: SecretStr | None = Field(
        default=None, min_length=32, description="Opens /metrics and nothing else; the admin key opens it too."
    )
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
    max_upload_bytes: int = Field(default=8 << 30, description="Of a file that arrives in parts.")
    max_part_bytes: int = 64 << 20
    max_unannounced_bytes: int = Field(
        default=64 << 20, description="Of any body without Content-Length: what is too long is found by taking it in."
    )
    foreground_bytes: int = Field(
        default=128 << 20, description="Files in parts up to this size are put together while the caller waits."
    )
    max_storage_bytes: int | None = Field(
        default=None, ge=0, description="Of a project's files together, where the project has no limit of its own."
    )
    max_uploads: int = Field(default=64, ge=1, description="Files and parts that one process takes in at once.")
    max_project_uploads: int = Field(default=16, ge=1, description="Of these, of one project.")
    max_spool_bytes: int = Field(
        default=8 << 30, ge=1, description="Of these together: they lie in the folder for temporary files meanwhile."
    )
    max_project_spool_bytes: int = Field(default=2 << 30, ge=1, description="Of these, of one project.")
    spool_reserve_bytes: int = Field(
        default=1 << 30, ge=0, description="Left free on the disk of temporary files, where the usage spool may be too."
    )
    max_line_bytes: int = 1 << 20
    max_body_bytes: int = Field(
        default=512 << 10, description="Of a JSON body. Each name in it that is not known takes time to refuse."
    )
    max_prompt_bytes: int = Field(default=4 << 20, description="The same where prompts are sent.")
    min_examples: int = 10
    deleted_adapter_days: float = Field(default=30.0, ge=0, description="A deleted adapter can be restored so long.")
    max_pinned_versions: int = Field(default=8, ge=0, description="Of a project, kept loaded whether used or not.")
    cold_wait_seconds: float = 60.0
    max_completions: int = Field(default=2048, ge=1, description="Completions at once in one process.")
    max_project_completions: int = Field(default=512, ge=1, description="Of these, of one project.")
    max_completion_bytes: int = Field(
        default=512 << 20, ge=1, description="What completions in one process hold: bodies, twice, and whole answers."
    )
    max_project_completion_bytes: int = Field(default=128 << 20, ge=1, description="Of these, of one project.")
    max_requests_per_minute: int = Field(
        default=1_000_000, ge=0, description="Of a project that has no limit of its own."
    )
    max_tokens_per_minute: int = Field(default=1_000_000_000, ge=0, description="The same for tokens, in and out.")
    max_batch_requests: int = Field(
        default=16, ge=1, description="Requests of batches at once in one process; a quarter while others ask."
    )
    max_shadow_requests: int = Field(
        default=16, ge=1, description="Copies of requests for shadowing versions at once in one process."
    )
    hot_adapter_requests: int = Field(
        default=32, ge=1, description="Requests at once for which one replica of an adapter is enough."
    )
    metrics_projects: int = Field(default=50, ge=1, description="Projects with numbers of their own in /metrics.")
    stall_seconds: float = Field(
        default=30.0, gt=0, description="A client that takes or sends less than 1 KiB a second for so long is cut off."
    )
    training_price_per_million_tokens: dict[str, float] = Field(
        default={}, description="By base model; nothing for those that are not named."
    )
    input_price_per_million_tokens: dict[str, float] = Field(
        default={}, description="Of prompts, by base model, whether or not with an adapter."
    )
    output_price_per_million_tokens: dict[str, float] = Field(default={}, description="Of completions.")
    storage_price_per_gigabyte_month: float = Field(default=0.0, ge=0, description="Of files, 10^9 bytes for 30 days.")
    currency: str = "usd"
    max_queued_jobs: int = Field(
        default=1000, ge=0, description="Waiting and paused jobs of a project that has no limit of its own."
    )
    max_management_requests_per_minute: int = Field(
        default=6000, ge=0, description="Of such a project in one process: of everything but inference."
    )
    max_project_event_streams: int = Field(
        default=100, ge=1, description="Streams of job events at once, of one project in one process."
    )
    webhooks_to_private_networks: bool = Field(
        default=False, description="Whether webhooks may go to private addresses, and without TLS."
    )
    imported_base_models: dict[str, str] = Field(
        default={}, description="The base that jobs imported from OpenAI get, by the beginning of OpenAI's model name."
    )
    import_places: tuple[str, ...] = Field(
        default=(),
        description="Where adapters may be imported from, `bucket` or `bucket/folder`; `{project}` is a project's id.",
    )
    max_import_bytes: int = Field(default=4 << 30, ge=0, description="Of an imported adapter's weights.")
    max_lora_rank: int = Field(
        default=MAX_RANK, ge=1, le=512, description="Of trained and imported adapters: what every replica serves."
    )
    export_hours: float = Field(default=24.0, gt=0, description="Exported files can be read for so long.")
    max_project_transfers: int = Field(
        default=20, ge=1, description="Of a project: imports and exports under way, and merged exports still there."
    )

    @model_validator(mode="after")
    def _one_request_fits(self) -> Self:
        if min(self.max_completion_bytes, self.max_project_completion_bytes) < 2 * self.max_prompt_bytes:
            raise ValueError("max_completion_bytes and max_project_completion_bytes must be twice max_prompt_bytes")
        return self
