"""The administrator's routes of usage and costs, at OpenAI's addresses."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Literal, Protocol, TypeVar

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel

from service.errors import InvalidRequest
from service.resources import ControlTransaction, CurrentResources
from service.tenants.auth import require_admin
from service.usage import costs, reports
from service.usage.reports import Range, Wanted
from service.usage.schemas import Bucket, CompletionsUsage, Cost, FineTuningUsage, Report, StorageUsage

router = APIRouter(prefix="/v1/organization", tags=["organization"], dependencies=[Depends(require_admin)])

WIDTHS = {"1m": timedelta(minutes=1), "1h": timedelta(hours=1), "1d": timedelta(days=1)}
COUNTS = {"1m": (60, 1440), "1h": (24, 168), "1d": (7, 180)}
"""Buckets of an answer: how many where nothing is said, and at most."""
Moment = Annotated[int, Query(ge=0, le=2**33)]
Names = list[str] | None


ResultT = TypeVar("ResultT", bound=BaseModel)


class _Begun(Protocol):
    @property
    def begin(self) -> datetime: ...


RowT = TypeVar("RowT", bound=_Begun)


@dataclass(frozen=True)
class Span:
    """The buckets of one page, and where the next one begins."""

    range: Range
    more: bool

    def report(self, rows: Iterable[RowT], shown: Callable[[RowT], ResultT]) -> Report[ResultT]:
        filled: dict[datetime, list[ResultT]] = {begin: [] for begin in self.range.begins()}
        for row in rows:
            filled[row.begin].append(shown(row))
        data = [
            Bucket[ResultT](
                start_time=int(begin.timestamp()),
                end_time=int((begin + self.range.width).timestamp()),
                results=results,
            )
            for begin, results in filled.items()
        ]
        following = str(int(self.range.until.timestamp())) if self.more else None
        return Report[ResultT](data=data, has_more=self.more, next_page=following)


def _span(
    start_time: Moment,
    end_time: Moment | None = None,
    bucket_width: Literal["1m", "1h", "1d"] = "1d",
    limit: Annotated[int | None, Query(ge=1)] = None,
    page: str | None = None,
) -> Span:
    usual, most = COUNTS[bucket_width]
    if limit is not None and limit > most:
        raise InvalidRequest(f"'limit' may be at most {most} with 'bucket_width' {bucket_width}.", param="limit")
    if page is not None and not (page.isdecimal() and len(page) <= 10):
        raise InvalidRequest("'page' must be the 'next_page' of an answer.", param="page")
    end = int(time.time()) + 1 if end_time is None else end_time
    begin = start_time if page is None else int(page)
    if end <= start_time:
        raise InvalidRequest("'end_time' must be later than 'start_time'.", param="end_time")
    span = Range.of(begin, end, WIDTHS[bucket_width], limit or usual)
    return Span(span, more=span.until.timestamp() < end)


PageSpan = Annotated[Span, Depends(_span)]
Groups = Annotated[list[Literal["project_id", "api_key_id", "model"]] | None, Query(alias="group_by[]", max_length=8)]
CostGroups = Annotated[list[Literal["project_id", "line_item"]] | None, Query(alias="group_by[]", max_length=8)]


def _wanted(
    project_ids: Annotated[Names, Query(alias="project_ids[]", max_length=100)] = None,
    api_key_ids: Annotated[Names, Query(alias="api_key_ids[]", max_length=100)] = None,
    models: Annotated[Names, Query(alias="models[]", max_length=100)] = None,
    group_by: Groups = None,
) -> Wanted:
    return Wanted(project_ids, api_key_ids, models, tuple(dict.fromkeys(group_by or ())))


PageWanted = Annotated[Wanted, Depends(_wanted)]


@router.get("/usage/completions")
async def completions(session: ControlTransaction, span: PageSpan, wanted: PageWanted) -> Report[CompletionsUsage]:
    """Tokens and requests of completions."""
    rows = await reports.used(session, "completion", span.range, wanted)
    return span.report(
        rows,
        lambda row: CompletionsUsage(
            input_tokens=row.prompt_tokens,
            output_tokens=row.completion_tokens,
            num_model_requests=row.requests,
            **vars(row.group),
        ),
    )


@router.get("/usage/fine_tuning")
async def fine_tuning(session: ControlTransaction, span: PageSpan, wanted: PageWanted) -> Report[FineTuningUsage]:
    """Tokens that jobs were trained on, in the bucket in which each job ended."""
    rows = await reports.used(session, "training", span.range, wanted)
    return span.report(
        rows, lambda row: FineTuningUsage(trained_tokens=row.trained_tokens, num_jobs=row.requests, **vars(row.group))
    )


@router.get("/usage/storage")
async def storage(session: ControlTransaction, span: PageSpan, wanted: PageWanted) -> Report[StorageUsage]:
    """What projects had stored in files, one result for each project."""
    rows = await reports.stored(session, span.range, wanted.project_ids)
    seconds = span.range.width.total_seconds()
    return span.report(
        rows,
        lambda row: StorageUsage(
            project_id=row.project_id, byte_seconds=row.byte_seconds, average_bytes=round(row.byte_seconds / seconds)
        ),
    )


@router.get("/costs")
async def list_costs(
    session: ControlTransaction,
    resources: CurrentResources,
    span: PageSpan,
    project_ids: Annotated[Names, Query(alias="project_ids[]", max_length=100)] = None,
    group_by: CostGroups = None,
) -> Report[Cost]:
    """By the price list in the settings. Grouped by line item, each has its quantity."""
    rows = await costs.costs(session, resources.settings, span.range, project_ids, frozenset(group_by or ()))
    return span.report(rows, lambda row: costs.shown(row, resources.settings.currency))
