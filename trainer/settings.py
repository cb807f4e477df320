"""The trainer's configuration, from the environment (prefix `WEFT_TRAINER_`).

Holds no database and no storage credential.
"""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class TrainerSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="WEFT_TRAINER_", frozen=True, extra="forbid")

    service_url: str
    worker_token: SecretStr
    worker_name: str = "trainer"
    base_model: str = Field(description="Public name of the base, as the service knows it.")
    base_source: str = Field(description="Local folder or hub id of the base.")
    base_fingerprint: str
    work_dir: Path
    jobs: int = Field(default=16, ge=1, description="Jobs in the engine at once; those for which memory lacks wait.")
    memory_gib: float = Field(default=0, ge=0, description="For the jobs, beside the base; 0 finds out.")
    threads: int = Field(default=0, ge=0, description="CPU threads of the engine; 0 chooses by the base's size.")
    device: str = Field(default="auto", description="auto, cpu or cuda[:n].")
    checkpoint_seconds: float = Field(default=60.0, gt=0)
    report_seconds: float = Field(default=1.0, gt=0)
    claim_wait_seconds: float = Field(default=10.0, ge=0)
    stop_seconds: float = Field(default=10.0, gt=0, description="From SIGTERM to the last child gone.")
    stall_seconds: float = Field(default=300.0, gt=0, description="A silent engine is restarted then.")
    ready_seconds: float = Field(default=1800.0, gt=0, description="For a child to load what it needs.")
    transfers: bool = Field(default=True, description="Whether it also imports adapters and merges them for export.")
    transfer_poll_seconds: float = Field(default=3.0, gt=0)
    transfer_seconds: float = Field(default=3600.0, gt=0, description="For one conversion or merge.")
    transfer_memory_gib: float = Field(default=0, ge=0, description="For the same; 0 takes half of the machine's.")
