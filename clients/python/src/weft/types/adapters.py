"""Registered adapters: their versions, aliases, history and permissions."""

from typing import Any, Literal, Required, TypedDict

from openai import BaseModel
from pydantic import Field


class Adapter(BaseModel):
    """A name for a line of versions. `model="name"` means its alias `default`."""

    id: str
    object: Literal["adapter"] = "adapter"
    name: str
    description: str | None = None
    metadata: dict[str, str] = {}
    base_model: str | None = None
    created_at: int
    deleted_at: int | None = None
    latest_version: int | None = None
    aliases: dict[str, int] = {}
    """Which version each alias points at."""


class VersionSource(BaseModel):
    type: Literal["job", "checkpoint", "model", "import"] | str
    id: str


class AdapterVersion(BaseModel):
    """One immutable version. `model` is what to give as the model of a request."""

    id: str
    object: Literal["adapter.version"] = "adapter.version"
    adapter: str
    version: int
    model: str
    base_model: str
    sha256: str
    """Of its manifest, which holds those of its files."""
    rank: int
    alpha: float
    target_modules: list[str]
    bytes: int
    source: VersionSource
    evaluation: dict[str, Any] | None = None
    pinned: bool = False
    created_at: int


class Share(BaseModel):
    version: int
    weight: float


class Shadow(BaseModel):
    version: int
    fraction: float


class AutomaticRollback(BaseModel):
    """Back to the version before, once more than `max_error_rate` of at least `min_requests` requests have failed."""

    max_error_rate: float
    min_requests: int
    window_seconds: int


class AdapterAlias(BaseModel):
    """Points at a version; may split traffic over several and may copy some of it to another."""

    id: str
    """How a request names it as its model."""
    object: Literal["adapter.alias"] = "adapter.alias"
    adapter: str
    alias: str
    version: int
    traffic: list[Share] | None = None
    shadow: Shadow | None = None
    automatic_rollback: AutomaticRollback | None = None
    revision: int
    """Grows with every change; give it as `if_revision` to change only what you have seen."""
    updated_at: int


class AdapterChange(BaseModel):
    """An entry of an adapter's history. `traffic` and `shadow` are those that the change led to."""

    id: str
    object: Literal["adapter.change"] = "adapter.change"
    adapter: str
    alias: str
    revision: int
    action: Literal["promote", "rollback", "automatic_rollback", "traffic", "shadow", "update", "delete"] | str
    from_version: int | None = None
    to_version: int | None = None
    traffic: list[Share] | None = None
    shadow: Shadow | None = None
    actor: str | None = None
    """The id of the key that made it."""
    reason: str | None = None
    created_at: int


class ResidentOn(BaseModel):
    replica: str
    tier: Literal["gpu", "cpu", "disk"] | str | None = None


class AdapterResidency(BaseModel):
    """Which replicas hold a version, and in which tier of memory."""

    id: str
    object: Literal["adapter.residency"] = "adapter.residency"
    adapter: str
    version: int
    model: str
    pinned: bool
    replicas: list[ResidentOn]


class AdapterPermission(BaseModel):
    """Lets another project use an adapter."""

    id: str
    object: Literal["adapter.permission"] = "adapter.permission"
    project_id: str
    created_at: int


class DataFile(BaseModel):
    id: str
    filename: str
    sha256: str
    bytes: int


class JobProvenance(BaseModel):
    id: str
    method: str
    seed: int
    hyperparameters: dict[str, Any]
    hyperparameter_rules: dict[str, str]
    trained_tokens: int
    start_model: str | None = None
    start_sha256: str | None = None


class StoredFile(BaseModel):
    """One of the files that a version consists of."""

    path: str
    sha256: str
    size: int


class Provenance(BaseModel):
    """Everything that a version was made of. `job` is None for an imported one, `imported` for any other."""

    object: Literal["adapter.provenance"] = "adapter.provenance"
    adapter: str
    version: int
    sha256: str
    files: list[StoredFile] = []
    source: VersionSource
    base_model: str
    base_fingerprint: str
    chat_template_sha256: str | None = None
    job: JobProvenance | None = None
    imported: dict[str, Any] | None = Field(default=None, alias="import")
    training_file: DataFile | None = None
    validation_file: DataFile | None = None
    evaluation: dict[str, Any] | None = None


class AdapterDeleted(BaseModel):
    """It can be restored until `purged_at`."""

    id: str
    object: Literal["adapter"] = "adapter"
    name: str
    deleted: bool
    purged_at: int


class VersionDeleted(BaseModel):
    id: str
    object: Literal["adapter.version"] = "adapter.version"
    adapter: str
    version: int
    deleted: bool


class AliasDeleted(BaseModel):
    id: str
    object: Literal["adapter.alias"] = "adapter.alias"
    adapter: str
    alias: str
    deleted: bool


class PermissionDeleted(BaseModel):
    id: str
    object: Literal["adapter.permission"] = "adapter.permission"
    deleted: bool


class SourceParam(TypedDict, total=False):
    """Where a version comes from: a job, a checkpoint of one, or a fine-tuned model."""

    type: Required[Literal["job", "checkpoint", "model"]]
    job_id: str
    checkpoint_id: str
    model: str


class ShareParam(TypedDict):
    version: int
    weight: float


class ShadowParam(TypedDict):
    version: int
    fraction: float


class AutomaticRollbackParam(TypedDict, total=False):
    max_error_rate: Required[float]
    min_requests: int
    window_seconds: int
