"""Bodies of the admin routes, in the shapes of OpenAI's organization API."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.listing import Item, Page
from service.tenants.models import KeyRow, ProjectRow

Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]


class Named(BaseModel):
    """The body that makes a project or a key."""

    model_config = ConfigDict(extra="forbid")

    name: Name


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
    """Keys belong to no person here: each is its own service account."""

    type: Literal["service_account"] = "service_account"
    service_account: ServiceAccount


class Key(Item):
    object: Literal["organization.project.api_key"] = "organization.project.api_key"
    name: str
    redacted_value: str
    created_at: int
    last_used_at: int | None
    owner: Owner
    owner_project_access: Literal["active"] = "active"

    @classmethod
    def of(cls, row: KeyRow) -> "Key":
        created_at = seconds(row.created_at)
        return cls(
            id=row.id,
            name=row.name,
            redacted_value=row.redacted_value,
            created_at=created_at,
            last_used_at=None if row.last_used_at is None else seconds(row.last_used_at),
            owner=Owner(service_account=ServiceAccount(id=row.id, name=row.name, created_at=created_at)),
        )


class NewKey(Key):
    value: str = Field(description="The key itself. Shown in this answer and never again.")


class KeyDeleted(BaseModel):
    object: Literal["organization.project.api_key.deleted"] = "organization.project.api_key.deleted"
    id: str
    deleted: Literal[True] = True


ProjectPage = Page[Project]
KeyPage = Page[Key]


def seconds(moment: datetime) -> int:
    return int(moment.timestamp())
