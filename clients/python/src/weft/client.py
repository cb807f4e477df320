"""Where a Weft client finds its service and its key. What it can do with them is the `openai` package's."""

import os
from typing import Any

from openai import AsyncOpenAI, OpenAI, OpenAIError

BASE_URL = "WEFT_BASE_URL"
API_KEY = "WEFT_API_KEY"


class Weft(OpenAI):
    """A synchronous client. Takes every option of `openai.OpenAI`; raises OpenAIError without an address or key."""

    def __init__(self, *, api_key: Any = None, base_url: Any = None, **options: Any) -> None:
        super().__init__(
            api_key=api_key or _from_environment(API_KEY, "api_key"),
            base_url=base_url or _from_environment(BASE_URL, "base_url"),
            **options,
        )


class AsyncWeft(AsyncOpenAI):
    """An asynchronous client. Takes every option of `openai.AsyncOpenAI`."""

    def __init__(self, *, api_key: Any = None, base_url: Any = None, **options: Any) -> None:
        super().__init__(
            api_key=api_key or _from_environment(API_KEY, "api_key"),
            base_url=base_url or _from_environment(BASE_URL, "base_url"),
            **options,
        )


def _from_environment(variable: str, argument: str) -> str:
    value = os.environ.get(variable)  # noqa: TID251 - a client library has no settings module
    if not value:
        raise OpenAIError(f"set {variable} or pass {argument}=")
    return value
