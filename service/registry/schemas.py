"""Registered adapters and their versions as the public API shows them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.adapters.aliases import version_name
from service.adapters.models import GrantRow, RegisteredRow, VersionRow
from service.contracts.manifest import AdapterManifest, ManifestFile
from service.contracts.replica import Tier
from service.listing import Item
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


class Version(Item):
    """`model` names exactly this version, for ever. `sha256` is of its manifest, which holds those of its files."""

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
    pinned: bool
    created_at: int

    @classmethod
    def of(cls, name: str, row: VersionRow, manifest: AdapterManifest) -> "Version":
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


class Provenance(BaseModel):
    """Everything that the version was made of. `job` is null for an imported one, `import` for any other."""

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

    @classmethod
    def of(cls, name: str, row: VersionRow, manifest: AdapterManifest) -> "Provenance":
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
