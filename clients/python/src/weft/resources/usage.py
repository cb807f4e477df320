"""Reports of what was used and what it cost, in buckets of time, for administrators."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic, Literal, Required, TypedDict, TypeVar

from openai.pagination import AsyncPage, SyncPage
from typing_extensions import Unpack, override

from weft.options import EXTRAS, Extras
from weft.resource import AsyncResource, SyncResource
from weft.stock import PageInfo
from weft.types.organization import CompletionsUsage, Cost, FineTuningUsage, StorageUsage, UsageBucket

if TYPE_CHECKING:
    from weft.stock import AsyncPaginator

ItemT = TypeVar("ItemT")
USAGE = "/organization/usage/"
COSTS = "/organization/costs"


class SyncReport(SyncPage[ItemT], Generic[ItemT]):
    """Buckets of time; iterating goes on to the next pages."""

    next_page: str | None = None

    @override
    def next_page_info(self) -> PageInfo | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        return PageInfo(params={"page": self.next_page}) if self.next_page else None


class AsyncReport(AsyncPage[ItemT], Generic[ItemT]):
    """As SyncReport."""

    next_page: str | None = None

    @override
    def next_page_info(self) -> PageInfo | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        return PageInfo(params={"page": self.next_page}) if self.next_page else None


class Span(Extras, total=False):
    """What a report is about. Times are seconds since 1970."""

    start_time: Required[int]
    end_time: int
    bucket_width: Literal["1m", "1h", "1d"]
    limit: int
    """Buckets on each page."""
    page: str
    """Where to go on: `next_page` of an earlier report."""
    project_ids: Sequence[str]


class UsageQuery(Span, total=False):
    api_key_ids: Sequence[str]
    models: Sequence[str]
    group_by: Sequence[Literal["project_id", "api_key_id", "model"]]


class CostQuery(Span, total=False):
    group_by: Sequence[Literal["project_id", "line_item"]]


class _Parts(TypedDict):
    extras: dict[str, Any]
    query: dict[str, Any]


def _parts(request: UsageQuery | CostQuery) -> _Parts:
    extras = {name: value for name, value in request.items() if name in EXTRAS}
    return {"extras": extras, "query": {name: value for name, value in request.items() if name not in EXTRAS}}


class Usage(SyncResource):
    """Needs an administrator's key."""

    _administrative = True

    def completions(self, **query: Unpack[UsageQuery]) -> SyncReport[UsageBucket[CompletionsUsage]]:
        """Tokens and requests of completions.

        >>> day = admin.usage.completions(start_time=midnight, group_by=["model"]).data[0]
        >>> [(result.model, result.input_tokens) for result in day.results]
        []
        """
        return self._report(USAGE + "completions", CompletionsUsage, _parts(query))

    def fine_tuning(self, **query: Unpack[UsageQuery]) -> SyncReport[UsageBucket[FineTuningUsage]]:
        """Tokens that jobs were trained on, in the bucket in which each job ended."""
        return self._report(USAGE + "fine_tuning", FineTuningUsage, _parts(query))

    def storage(self, **query: Unpack[UsageQuery]) -> SyncReport[UsageBucket[StorageUsage]]:
        """What projects had stored in files, one result for each project."""
        return self._report(USAGE + "storage", StorageUsage, _parts(query))

    def costs(self, **query: Unpack[CostQuery]) -> SyncReport[UsageBucket[Cost]]:
        """By the service's price list; grouped by `line_item`, each has its quantity."""
        return self._report(COSTS, Cost, _parts(query))

    def _report(self, where: str, result: type[ItemT], parts: _Parts) -> SyncReport[UsageBucket[ItemT]]:
        bucket = UsageBucket[result]
        options = self._options(parts["extras"], parts["query"])
        return self._client.get_api_list(where, model=bucket, page=SyncReport[bucket], options=options)


class AsyncUsage(AsyncResource):
    """As Usage; every method is awaited."""

    _administrative = True

    def completions(
        self, **query: Unpack[UsageQuery]
    ) -> "AsyncPaginator[UsageBucket[CompletionsUsage], AsyncReport[UsageBucket[CompletionsUsage]]]":
        return self._report(USAGE + "completions", CompletionsUsage, _parts(query))

    def fine_tuning(
        self, **query: Unpack[UsageQuery]
    ) -> "AsyncPaginator[UsageBucket[FineTuningUsage], AsyncReport[UsageBucket[FineTuningUsage]]]":
        return self._report(USAGE + "fine_tuning", FineTuningUsage, _parts(query))

    def storage(
        self, **query: Unpack[UsageQuery]
    ) -> "AsyncPaginator[UsageBucket[StorageUsage], AsyncReport[UsageBucket[StorageUsage]]]":
        return self._report(USAGE + "storage", StorageUsage, _parts(query))

    def costs(self, **query: Unpack[CostQuery]) -> "AsyncPaginator[UsageBucket[Cost], AsyncReport[UsageBucket[Cost]]]":
        return self._report(COSTS, Cost, _parts(query))

    def _report(
        self, where: str, result: type[ItemT], parts: _Parts
    ) -> "AsyncPaginator[UsageBucket[ItemT], AsyncReport[UsageBucket[ItemT]]]":
        bucket = UsageBucket[result]
        options = self._options(parts["extras"], parts["query"])
        return self._client.get_api_list(where, model=bucket, page=AsyncReport[bucket], options=options)
