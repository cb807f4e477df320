"""What Weft uses of the `openai` package that is not public there, in one place."""

from typing import TYPE_CHECKING

from openai._base_client import PageInfo
from openai._compat import cached_property
from openai._legacy_response import async_to_raw_response_wrapper as async_raw
from openai._legacy_response import to_raw_response_wrapper as raw

if TYPE_CHECKING:
    from openai._base_client import AsyncPaginator as AsyncPaginator

__all__ = ["PageInfo", "async_raw", "cached_property", "raw"]
