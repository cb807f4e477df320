"""Models as the public API shows them."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.adapters.models import PermissionRow
from service.listing import Item


class ModelObject(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelObject]


class ModelDeleted(BaseModel):
    id: str
    object: Literal["model"] = "model"
    deleted: Literal[True] = True


class Grant(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    project_ids: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=128)]], Field(min_length=1, max_length=100)
    ]


class Permission(Item):
    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    created_at: int
    project_id: str

    @classmethod
    def of(cls, row: PermissionRow) -> "Permission":
        return cls(id=row.id, created_at=int(row.created_at.timestamp()), project_id=row.project_id)


class PermissionDeleted(BaseModel):
    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    id: str
    deleted: Literal[True] = True
