"""Registered adapters and their versions as the public API shows them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.adapters.aliases import version_name
from service.adapters.models import GrantRow, RegisteredRow, VersionRow
from service.contracts.manifest import AdapterManifest, ManifestFile
from service.contracts.replica import Tier
from service.listing import Item
from service.registry.models import EvaluationRow
from service.registry.residency import Residency


class Adapter(Item):
    """`base_model` is that of its versions, null before there is one; `aliases` say which version each stands for."""

    object: Literal["adapter"] = "adapter"
    name: str
    description: str | None
    metadata: dict[str, str]
    base_model: str | None
    created_at: int
    deleted_at: int | None
    latest_version: int | None
    aliases: dict[str, int]

    @classmethod
    def of(cls, row: RegisteredRow, latest: int | None, aliases: dict[str, int]) -> "Adapter":
        return cls(
            id=row.id,
            name=row.name,
            description=row.description,
            metadata=row.adapter_metadata,
            base_model=row.base_model,
            created_at=int(row.created_at.timestamp()),
            deleted_at=int(row.deleted_at.timestamp()) if row.deleted_at else None,
            latest_version=latest,
            aliases=aliases,
        )


class AdapterDeleted(BaseModel):
    """It can be restored until `purged_at`."""

    object: Literal["adapter"] = "adapter"
    id: str
    name: str
    deleted: Literal[True] = True
    purged_at: int


class Source(BaseModel):
    type: str
    id: str


class VersionScore(BaseModel):
    """What an evaluation found; `grader` is its name or its type. `alias` is what it decided on, null where nothing."""

    evaluation_id: str
    grader: str
    score: float | None
    alias: str | None
    promoted: bool | None
    finished_at: int | None

    @classmethod
    def of(cls, row: EvaluationRow) -> "VersionScore":
        return cls(
            evaluation_id=row.id,
            grader=row.grader.get("name") or row.grader["type"],
            score=row.score,
            alias=row.alias,
            promoted=row.promoted,
            finished_at=_seconds(row.finished_at),
        )


class Version(Item):
    """`model` names exactly this version, for ever. `sha256` is of its manifest, which holds those of its files.

    `evaluation` is what its job measured at its step; `scores` are of its newest evaluations, newest first.
    """

    object: Literal["adapter.version"] = "adapter.version"
    adapter: str
    version: int
    model: str
    base_model: str
    sha256: str
    rank: int
    alpha: float
    target_modules: list[str]
    bytes: int
    source: Source
    evaluation: dict[str, Any] | None
    scores: list[VersionScore]
    pinned: bool
    created_at: int

    @classmethod
    def of(cls, name: str, row: VersionRow, manifest: AdapterManifest, evaluated: Sequence[EvaluationRow]) -> "Version":
        return cls(
            id=row.id,
            adapter=name,
            version=row.number,
            model=version_name(name, row.number),
            base_model=manifest.base_model,
            sha256=row.artifact_id,
            rank=manifest.rank,
            alpha=manifest.alpha,
            target_modules=sorted(manifest.target_modules),
            bytes=sum(file.size for file in manifest.files),
            source=Source.model_validate(row.source),
            evaluation=row.evaluation,
            scores=[VersionScore.of(each) for each in evaluated],
            pinned=row.pinned,
            created_at=int(row.created_at.timestamp()),
        )


class VersionDeleted(BaseModel):
    object: Literal["adapter.version"] = "adapter.version"
    id: str
    adapter: str
    version: int
    deleted: Literal[True] = True


class DataFile(BaseModel):
    id: str
    filename: str
    sha256: str
    bytes: int


class JobProvenance(BaseModel):
    """`start_model` is what the job went on from, `start_sha256` the manifest of that."""

    id: str
    method: str
    seed: int
    hyperparameters: dict[str, Any]
    hyperparameter_rules: dict[str, str]
    trained_tokens: int
    start_model: str | None
    start_sha256: str | None


class EvaluationRecord(BaseModel):
    """How a version did on the examples of a file. `current_score` is that of the version of `alias` at that time."""

    id: str
    file_id: str
    file_sha256: str | None
    grader: dict[str, Any]
    score: float | None
    alias: str | None
    current_version: int | None
    current_score: float | None
    promoted: bool | None
    finished_at: int | None

    @classmethod
    def of(cls, row: EvaluationRow, sha256: str | None) -> "EvaluationRecord":
        same = ("id", "file_id", "grader", "score", "alias", "current_version", "current_score", "promoted")
        return cls(
            **{field: getattr(row, field) for field in same},
            file_sha256=sha256,
            finished_at=_seconds(row.finished_at),
        )


class Provenance(BaseModel):
    """Everything that the version was made of, and how it did. `job` is null for an imported one, `import` for any
    other. `evaluation` is what the job measured itself; `evaluations` were made later, and are the newest ones.
    """

    model_config = ConfigDict(populate_by_name=True)

    object: Literal["adapter.provenance"] = "adapter.provenance"
    adapter: str
    version: int
    sha256: str
    files: list[ManifestFile]
    source: Source
    base_model: str
    base_fingerprint: str
    chat_template_sha256: str | None
    job: JobProvenance | None
    imported: Annotated[dict[str, Any] | None, Field(alias="import")]
    training_file: DataFile | None
    validation_file: DataFile | None
    evaluation: dict[str, Any] | None
    evaluations: list[EvaluationRecord]

    @classmethod
    def of(
        cls, name: str, row: VersionRow, manifest: AdapterManifest, evaluated: list[EvaluationRecord]
    ) -> "Provenance":
        known = row.provenance
        return cls(
            adapter=name,
            version=row.number,
            sha256=row.artifact_id,
            files=list(manifest.files),
            source=Source.model_validate(row.source),
            base_model=manifest.base_model,
            base_fingerprint=manifest.base_fingerprint,
            chat_template_sha256=manifest.chat_template_sha256,
            job=known.get("job"),
            imported=known.get("import"),
            training_file=known.get("training_file"),
            validation_file=known.get("validation_file"),
            evaluation=row.evaluation,
            evaluations=evaluated,
        )


class ResidentOn(BaseModel):
    """`tier` is where the replica holds it, null where it did not say."""

    replica: str
    tier: Tier | None


class VersionResidency(Item):
    object: Literal["adapter.residency"] = "adapter.residency"
    adapter: str
    version: int
    model: str
    pinned: bool
    replicas: list[ResidentOn]

    @classmethod
    def of(cls, name: str, found: Residency) -> "VersionResidency":
        row = found.version
        return cls(
            id=row.id,
            adapter=name,
            version=row.number,
            model=version_name(name, row.number),
            pinned=row.pinned,
            replicas=[ResidentOn(replica=each.replica, tier=each.tier) for each in found.replicas],
        )


class AdapterPermission(Item):
    object: Literal["adapter.permission"] = "adapter.permission"
    created_at: int
    project_id: str

    @classmethod
    def of(cls, row: GrantRow) -> "AdapterPermission":
        return cls(id=row.id, created_at=int(row.created_at.timestamp()), project_id=row.project_id)


class AdapterPermissionDeleted(BaseModel):
    object: Literal["adapter.permission"] = "adapter.permission"
    id: str
    deleted: Literal[True] = True


def _seconds(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())
