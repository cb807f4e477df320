"""Bodies of the admin routes, in the shapes of OpenAI's organization API."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from service.listing import Item, Page
from service.tenants.models import AdminKeyRow, KeyRow, ProjectRow, ServiceAccountRow
from service.tenants.scopes import SCOPES

Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
Lifetime = Annotated[int, Field(ge=1, le=10 * 365 * 86400)]


def _known(scope: str) -> str:
    if scope not in SCOPES:
        raise ValueError(f"no such scope; there are {', '.join(sorted(SCOPES))}")
    return scope


Scope = Annotated[str, AfterValidator(_known)]
Scopes = Annotated[list[Scope], Field(max_length=32)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Named(Body):
    """The body that makes or renames a project or a service account."""

    name: Name


class NewKeyBody(Named):
    scopes: Scopes = Field(default=[], description="What the key may do; everything where there are none.")
    expires_in_seconds: Lifetime | None = None


class KeyChange(Body):
    """What is not given stays. An empty list of scopes removes every restriction."""

    name: Name | None = None
    scopes: Scopes | None = None
    expires_in_seconds: Lifetime | None = None


class Rotation(Body):
    grace_seconds: int = Field(default=86400, ge=0, le=30 * 86400, description="How long the old key goes on.")


class NewAdminKeyBody(Named):
    expires_in_seconds: Lifetime | None = None


class NewAccount(Named):
    create_service_account_only: bool | None = None
    expires_in_seconds: Lifetime | None = None


class Project(Item):
    object: Literal["organization.project"] = "organization.project"
    name: str
    created_at: int
    archived_at: int | None
    status: str

    @classmethod
    def of(cls, row: ProjectRow) -> "Project":
        return cls(
            id=row.id,
            name=row.name,
            created_at=seconds(row.created_at),
            archived_at=None if row.archived_at is None else seconds(row.archived_at),
            status=row.status,
        )


class ServiceAccount(BaseModel):
    id: str
    name: str
    created_at: int
    role: Literal["member"] = "member"


class Owner(BaseModel):
    """Keys belong to no person here: one that was made for no service account is its own."""

    type: Literal["service_account"] = "service_account"
    service_account: ServiceAccount


class Key(Item):
    object: Literal["organization.project.api_key"] = "organization.project.api_key"
    name: str
    redacted_value: str
    created_at: int
    last_used_at: int | None
    expires_at: int | None
    scopes: list[str]
    owner: Owner
    owner_project_access: Literal["active"] = "active"

    @classmethod
    def of(cls, row: KeyRow) -> "Key":
        created_at = seconds(row.created_at)
        owner = ServiceAccount(id=row.service_account_id or row.id, name=row.name, created_at=created_at)
        return cls(
            id=row.id,
            name=row.name,
            redacted_value=row.redacted_value,
            created_at=created_at,
            last_used_at=optional_seconds(row.last_used_at),
            expires_at=optional_seconds(row.expires_at),
            scopes=row.scopes,
            owner=Owner(service_account=owner),
        )


class NewKey(Key):
    value: str = Field(description="The key itself. Shown in this answer and never again.")


class KeyDeleted(BaseModel):
    object: Literal["organization.project.api_key.deleted"] = "organization.project.api_key.deleted"
    id: str
    deleted: Literal[True] = True


class Account(Item):
    object: Literal["organization.project.service_account"] = "organization.project.service_account"
    name: str
    role: str
    created_at: int

    @classmethod
    def of(cls, row: ServiceAccountRow) -> "Account":
        return cls(id=row.id, name=row.name, role=row.role, created_at=seconds(row.created_at))


class AccountKey(BaseModel):
    object: Literal["organization.project.service_account.api_key"] = "organization.project.service_account.api_key"
    id: str
    name: str
    value: str
    created_at: int
    expires_at: int | None = Field(default=None, description="Left out where the key does not end.")

    @classmethod
    def of(cls, row: KeyRow, value: str) -> "AccountKey":
        return cls(
            id=row.id,
            name=row.name,
            value=value,
            created_at=seconds(row.created_at),
            expires_at=optional_seconds(row.expires_at),
        )


class CreatedAccount(Account):
    api_key: AccountKey | None = None


class AccountDeleted(BaseModel):
    object: Literal["organization.project.service_account.deleted"] = "organization.project.service_account.deleted"
    id: str
    deleted: Literal[True] = True


class AdminOwner(BaseModel):
    """Administrators are no persons here either."""

    type: Literal["user"] = "user"
    object: Literal["organization.user"] = "organization.user"
    id: str
    name: str
    created_at: int
    role: Literal["owner"] = "owner"


class AdminKey(Item):
    object: Literal["organization.admin_api_key"] = "organization.admin_api_key"
    name: str
    redacted_value: str
    created_at: int
    last_used_at: int | None
    expires_at: int | None
    owner: AdminOwner

    @classmethod
    def of(cls, row: AdminKeyRow) -> "AdminKey":
        created_at = seconds(row.created_at)
        return cls(
            id=row.id,
            name=row.name,
            redacted_value=row.redacted_value,
            created_at=created_at,
            last_used_at=optional_seconds(row.last_used_at),
            expires_at=optional_seconds(row.expires_at),
            owner=AdminOwner(id=row.id, name=row.name, created_at=created_at),
        )


class NewAdminKey(AdminKey):
    value: str = Field(description="The key itself. Shown in this answer and never again.")


class AdminKeyDeleted(BaseModel):
    object: Literal["organization.admin_api_key.deleted"] = "organization.admin_api_key.deleted"
    id: str
    deleted: Literal[True] = True


ProjectPage = Page[Project]
KeyPage = Page[Key]
AccountPage = Page[Account]
AdminKeyPage = Page[AdminKey]


def seconds(moment: datetime) -> int:
    return int(moment.timestamp())


def optional_seconds(moment: datetime | None) -> int | None:
    return None if moment is None else seconds(moment)
