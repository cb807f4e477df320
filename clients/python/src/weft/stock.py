"""What Weft uses of the `openai` package that is not public there, in one place."""

from typing import TYPE_CHECKING

from openai._base_client import PageInfo
from openai._compat import cached_property
from openai._legacy_response import LegacyAPIResponse
from openai._legacy_response import async_to_raw_response_wrapper as async_raw
from openai._legacy_response import to_raw_response_wrapper as raw
from openai._models import construct_type
from openai._response import (
    APIResponse,
    AsyncAPIResponse,
    AsyncResponseContextManager,
    ResponseContextManager,
)
from openai._response import async_to_streamed_response_wrapper as async_streamed
from openai._response import to_streamed_response_wrapper as streamed
from openai._types import HeadersLike

if TYPE_CHECKING:
    from openai._base_client import AsyncPaginator as AsyncPaginator

__all__ = [
    "APIResponse",
    "AsyncAPIResponse",
    "AsyncResponseContextManager",
    "HeadersLike",
    "LegacyAPIResponse",
    "PageInfo",
    "ResponseContextManager",
    "async_raw",
    "async_streamed",
    "cached_property",
    "construct_type",
    "raw",
    "streamed",
]
