"""The base of Weft's own resources: one request each, with the client's retries, errors and raw responses."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from openai import AsyncOpenAI, BaseModel, OpenAI, RequestOptions
from openai.pagination import AsyncCursorPage, SyncCursorPage

from weft.options import given, options_of
from weft.responses import AsyncRawResponses, AsyncStreamedResponses, RawResponses, StreamedResponses
from weft.stock import cached_property

if TYPE_CHECKING:
    from weft.stock import AsyncPaginator

ModelT = TypeVar("ModelT", bound=BaseModel)
Verb = Literal["post", "put", "patch", "delete"]
Fields = Mapping[str, object]


class SyncResource:
    """Of the project that the client's key belongs to."""

    _administrative = False
    """Whether the administrator's key goes before the project's."""

    def __init__(self, client: OpenAI) -> None:
        self._client = client

    @cached_property
    def with_raw_response(self) -> RawResponses[Self]:
        return RawResponses(self)

    @cached_property
    def with_streaming_response(self) -> StreamedResponses[Self]:
        return StreamedResponses(self)

    def _one(self, where: str, model: type[ModelT], extras: Mapping[str, Any], query: Fields | None = None) -> ModelT:
        return self._client.get(where, cast_to=model, options=self._options(extras, query))

    def _do(
        self, verb: Verb, where: str, model: type[ModelT], extras: Mapping[str, Any], body: Fields | None = None
    ) -> ModelT:
        send = getattr(self._client, verb)
        return send(where, cast_to=model, body=None if body is None else given(body), options=self._options(extras))

    def _pages(
        self, where: str, model: type[ModelT], extras: Mapping[str, Any], query: Fields | None = None
    ) -> SyncCursorPage[ModelT]:
        options = self._options(extras, query)
        return self._client.get_api_list(where, model=model, page=SyncCursorPage[model], options=options)

    def _options(self, extras: Mapping[str, Any], query: Fields | None = None) -> RequestOptions:
        options = options_of(extras, query)
        if self._administrative and self._client.admin_api_key:
            options["security"] = {"admin_api_key_auth": True}
        return options


class AsyncResource:
    """Of the project that the client's key belongs to."""

    _administrative = False

    def __init__(self, client: AsyncOpenAI) -> None:
        self._client = client

    @cached_property
    def with_raw_response(self) -> AsyncRawResponses[Self]:
        return AsyncRawResponses(self)

    @cached_property
    def with_streaming_response(self) -> AsyncStreamedResponses[Self]:
        return AsyncStreamedResponses(self)

    async def _one(
        self, where: str, model: type[ModelT], extras: Mapping[str, Any], query: Fields | None = None
    ) -> ModelT:
        return await self._client.get(where, cast_to=model, options=self._options(extras, query))

    async def _do(
        self, verb: Verb, where: str, model: type[ModelT], extras: Mapping[str, Any], body: Fields | None = None
    ) -> ModelT:
        send = getattr(self._client, verb)
        options = self._options(extras)
        return await send(where, cast_to=model, body=None if body is None else given(body), options=options)

    def _pages(
        self, where: str, model: type[ModelT], extras: Mapping[str, Any], query: Fields | None = None
    ) -> "AsyncPaginator[ModelT, AsyncCursorPage[ModelT]]":
        options = self._options(extras, query)
        return self._client.get_api_list(where, model=model, page=AsyncCursorPage[model], options=options)

    def _options(self, extras: Mapping[str, Any], query: Fields | None = None) -> RequestOptions:
        options = options_of(extras, query)
        if self._administrative and self._client.admin_api_key:
            options["security"] = {"admin_api_key_auth": True}
        return options
