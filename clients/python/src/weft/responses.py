"""`with_raw_response` and `with_streaming_response` of Weft's own resources, as the `openai` package has them of its.

Every method of a resource that is one request is there, whichever resource it is.
"""

import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from openai.resources.files import (
    AsyncFilesWithRawResponse,
    AsyncFilesWithStreamingResponse,
    FilesWithRawResponse,
    FilesWithStreamingResponse,
)

from weft.stock import (
    APIResponse,
    AsyncAPIResponse,
    AsyncResponseContextManager,
    LegacyAPIResponse,
    ResponseContextManager,
    async_raw,
    async_streamed,
    raw,
    streamed,
)

if TYPE_CHECKING:
    from weft.resources.files import AsyncFiles, Files

ResourceT = TypeVar("ResourceT")
Request = Callable[..., Any]


class _Responses(Generic[ResourceT]):
    def __init__(self, resource: ResourceT) -> None:
        self._resource = resource

    def __dir__(self) -> list[str]:
        return [name for name in dir(type(self._resource)) if is_request(getattr(type(self._resource), name))]

    def _request(self, name: str) -> Request:
        if not name.startswith("_") and is_request(getattr(type(self._resource), name, None)):
            return getattr(self._resource, name)
        raise AttributeError(f"there is no method {name!r} here that is one request")


class RawResponses(_Responses[ResourceT]):
    """A resource's methods, each of which gives the whole response; its `parse()` is what the method itself gives."""

    def __getattr__(self, name: str) -> Callable[..., LegacyAPIResponse[Any]]:
        return raw(self._request(name))


class AsyncRawResponses(_Responses[ResourceT]):
    """As RawResponses; every method is awaited."""

    def __getattr__(self, name: str) -> Callable[..., Awaitable[LegacyAPIResponse[Any]]]:
        return async_raw(self._request(name))


class StreamedResponses(_Responses[ResourceT]):
    """As RawResponses, for `with` statements: the body is read when it is asked for."""

    def __getattr__(self, name: str) -> Callable[..., ResponseContextManager[APIResponse[Any]]]:
        return streamed(self._request(name))


class AsyncStreamedResponses(_Responses[ResourceT]):
    """As StreamedResponses, for `async with` statements."""

    def __getattr__(self, name: str) -> Callable[..., AsyncResponseContextManager[AsyncAPIResponse[Any]]]:
        return async_streamed(self._request(name))


class RawFiles(FilesWithRawResponse):
    def __init__(self, files: "Files") -> None:
        super().__init__(files)
        self.validation = raw(files.validation)


class AsyncRawFiles(AsyncFilesWithRawResponse):
    def __init__(self, files: "AsyncFiles") -> None:
        super().__init__(files)
        self.validation = async_raw(files.validation)


class StreamedFiles(FilesWithStreamingResponse):
    def __init__(self, files: "Files") -> None:
        super().__init__(files)
        self.validation = streamed(files.validation)


class AsyncStreamedFiles(AsyncFilesWithStreamingResponse):
    def __init__(self, files: "AsyncFiles") -> None:
        super().__init__(files)
        self.validation = async_streamed(files.validation)


def is_request(method: object) -> bool:
    """Whether it takes what every request takes beside its own arguments; a wait or a transfer of files does not."""
    if not inspect.isfunction(method) or method.__name__.startswith("_"):
        return False
    kinds = (parameter.kind for parameter in inspect.signature(method).parameters.values())
    return inspect.Parameter.VAR_KEYWORD in kinds
