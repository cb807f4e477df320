"""Registered adapters: their versions, what those were made of, and permissions."""

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


class VersionScore(BaseModel):
    """What an evaluation found; `alias` is what it decided on, None where nothing."""

    evaluation_id: str
    grader: str
    score: float | None = None
    alias: str | None = None
    promoted: bool | None = None
    finished_at: int | None = None


class AdapterVersion(BaseModel):
    """One immutable version. `model` is what to give as the model of a request.

    `evaluation` is what its job measured at its step; `scores` are of its newest evaluations, newest first.
    """

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
    scores: list[VersionScore] = []
    pinned: bool = False
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


class EvaluationRecord(BaseModel):
    """How a version did on the examples of a file. `current_score` is that of the version of `alias` at that time."""

    id: str
    file_id: str
    file_sha256: str | None = None
    grader: dict[str, Any]
    score: float | None = None
    alias: str | None = None
    current_version: int | None = None
    current_score: float | None = None
    promoted: bool | None = None
    finished_at: int | None = None


class Provenance(BaseModel):
    """Everything that a version was made of, and how it did. `job` is None for an imported one, `imported` for others.

    `evaluation` is what the job measured itself; `evaluations` were made later, and are the newest ones.
    """

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
    evaluations: list[EvaluationRecord] = []


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
