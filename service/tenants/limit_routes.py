"""The administrator's routes of one project's limits: one rate limit for all models, and the monthly budget."""

from typing import Annotated, Literal, TypeVar

from fastapi import APIRouter, Path
from pydantic import BaseModel, Field

from service.errors import NotFound
from service.idempotency.route import IdempotentRoute
from service.listing import Item, Page, page
from service.resources import ControlTransaction, CurrentResources
from service.settings import ServiceSettings
from service.tenants import projects
from service.tenants.models import ProjectRow
from service.tenants.project_routes import NamedProject
from service.tenants.schemas import Body

router = APIRouter(prefix="/projects/{project_id}", route_class=IdempotentRoute)

ALL_MODELS = "rl-all-models"
COLUMNS = {
    "max_requests_per_1_minute": "max_requests_per_minute",
    "max_tokens_per_1_minute": "max_tokens_per_minute",
    "max_management_requests_per_1_minute": "max_management_per_minute",
    "max_concurrent_jobs": "max_running_jobs",
    "max_queued_jobs": "max_queued_jobs",
    "max_concurrent_requests": "max_streams",
    "max_storage_bytes": "max_storage_bytes",
}
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
LargeCount = Annotated[int, Field(ge=0, le=2**63 - 1)]
Default = TypeVar("Default", int, int | None)


class RateLimit(Item):
    """OpenAI's object, with our limits beside its own. There is one for a project, whatever the model."""

    object: Literal["project.rate_limit"] = "project.rate_limit"
    model: str = "*"
    max_requests_per_1_minute: int
    max_tokens_per_1_minute: int
    max_management_requests_per_1_minute: int = Field(description="Of everything but inference, in each process.")
    max_concurrent_jobs: int
    max_queued_jobs: int = Field(description="Waiting and paused ones.")
    max_concurrent_requests: int
    max_storage_bytes: int | None

    @classmethod
    def of(cls, row: ProjectRow, settings: ServiceSettings) -> "RateLimit":
        return cls(
            id=ALL_MODELS,
            max_requests_per_1_minute=_first(row.max_requests_per_minute, settings.max_requests_per_minute),
            max_tokens_per_1_minute=_first(row.max_tokens_per_minute, settings.max_tokens_per_minute),
            max_management_requests_per_1_minute=_first(
                row.max_management_per_minute, settings.max_management_requests_per_minute
            ),
            max_concurrent_jobs=row.max_running_jobs,
            max_queued_jobs=_first(row.max_queued_jobs, settings.max_queued_jobs),
            max_concurrent_requests=_first(row.max_streams, settings.max_project_completions),
            max_storage_bytes=_first(row.max_storage_bytes, settings.max_storage_bytes),
        )


class RateLimitChange(Body):
    """What is not given stays; null goes back to the installation's default, where there is one."""

    max_requests_per_1_minute: Count | None = None
    max_tokens_per_1_minute: LargeCount | None = None
    max_management_requests_per_1_minute: Count | None = None
    max_concurrent_jobs: Count = 4
    max_queued_jobs: Count | None = None
    max_concurrent_requests: Count | None = None
    max_storage_bytes: LargeCount | None = None


class SpendLimitChange(Body):
    threshold_amount: LargeCount = Field(description="In cents.")
    currency: Literal["USD"] = "USD"
    interval: Literal["month"] = "month"


class Enforcement(BaseModel):
    status: Literal["inactive", "enforcing"]


class SpendLimit(BaseModel):
    object: Literal["project.spend_limit"] = "project.spend_limit"
    threshold_amount: int
    currency: Literal["USD"] = "USD"
    interval: Literal["month"] = "month"
    enforcement: Enforcement = Enforcement(status="enforcing")


class SpendLimitDeleted(BaseModel):
    object: Literal["project.spend_limit.deleted"] = "project.spend_limit.deleted"
    deleted: Literal[True] = True


@router.get("/rate_limits")
async def list_rate_limits(project: NamedProject, resources: CurrentResources) -> Page[RateLimit]:
    """The project's limits, one object for all models."""
    return page([project], 1, lambda row: RateLimit.of(row, resources.settings))


@router.post("/rate_limits/{rate_limit_id}")
async def change_rate_limit(
    rate_limit_id: Annotated[str, Path()],
    body: RateLimitChange,
    project: NamedProject,
    session: ControlTransaction,
    resources: CurrentResources,
) -> RateLimit:
    """Changes what is given and leaves the rest."""
    if rate_limit_id != ALL_MODELS:
        raise NotFound(f"No such rate limit: {rate_limit_id}; there is '{ALL_MODELS}'.", param="rate_limit_id")
    given = {COLUMNS[name]: getattr(body, name) for name in body.model_fields_set}
    return RateLimit.of(await projects.limit_project(session, project, **given), resources.settings)


@router.get("/spend_limit")
async def get_spend_limit(project: NamedProject) -> SpendLimit:
    """The project's monthly budget."""
    if project.monthly_budget_cents is None:
        raise NotFound("The project has no spend limit.")
    return SpendLimit(threshold_amount=project.monthly_budget_cents)


@router.post("/spend_limit")
async def set_spend_limit(body: SpendLimitChange, project: NamedProject, session: ControlTransaction) -> SpendLimit:
    """Sets the project's monthly budget; beyond it nothing that costs is begun."""
    await projects.limit_project(session, project, monthly_budget_cents=body.threshold_amount)
    return SpendLimit(threshold_amount=body.threshold_amount)


@router.delete("/spend_limit")
async def delete_spend_limit(project: NamedProject, session: ControlTransaction) -> SpendLimitDeleted:
    """Takes the monthly budget away."""
    await projects.limit_project(session, project, monthly_budget_cents=None)
    return SpendLimitDeleted()


def _first(own: int | None, default: Default) -> int | Default:
    return default if own is None else own
