"""The clients: the `openai` package's, pointed at a Weft service and with Weft's own resources.

Addresses and keys come from the arguments or from WEFT_* variables. The OPENAI_* variables are never used, so that
another vendor's key, organization or headers are not sent to a Weft service, nor the other way round.
"""

import os
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from openai import AsyncOpenAI, NotGiven, OpenAI, OpenAIError, Timeout, not_given

from weft.stock import cached_property

if TYPE_CHECKING:
    from httpx2 import URL

    from weft.resources.adapters import Adapters
    from weft.resources.async_adapters import AsyncAdapters
    from weft.resources.files import AsyncFiles, Files
    from weft.resources.fine_tuning import AsyncFineTuning, FineTuning
    from weft.resources.keys import AsyncKeys, Keys
    from weft.resources.projects import AsyncProjects, Projects
    from weft.resources.usage import AsyncUsage, Usage
    from weft.resources.webhook_endpoints import AsyncWebhookEndpoints, WebhookEndpoints
    from weft.resources.webhooks import AsyncWebhooks, Webhooks

DEFAULT_BASE_URL = "http://127.0.0.1:8000/v1"
"""Where `weftd up` serves."""
IDEMPOTENCY_HEADER = "Idempotency-Key"


class Weft(OpenAI):
    """A synchronous client of a Weft service: everything that `openai.OpenAI` can do, and Weft's own resources.

    What is left out comes from the environment: `base_url` from WEFT_BASE_URL (else http://127.0.0.1:8000/v1),
    `api_key` from WEFT_API_KEY, `admin_api_key`, for projects, keys and usage, from WEFT_ADMIN_KEY, `webhook_secret`
    from WEFT_WEBHOOK_SECRET. Raises OpenAIError without any key.

    Every request that changes something has an `Idempotency-Key` of its own, the same over the client's retries, so
    that a retry after a lost answer does nothing twice.

        >>> client = Weft(base_url=base_url, api_key=api_key)
        >>> [model.id for model in client.models.list()]
        ['weft-tiny']
    """

    def __init__(
        self,
        *,
        api_key: str | Callable[[], str] | None = None,
        admin_api_key: str | None = None,
        base_url: "str | URL | None" = None,
        webhook_secret: str | None = None,
        timeout: float | Timeout | NotGiven | None = not_given,
        max_retries: int = 2,
        default_headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        admin_api_key = admin_api_key or _environment("WEFT_ADMIN_KEY")
        super().__init__(
            api_key=api_key or _key(admin_api_key),
            admin_api_key=admin_api_key or "",
            base_url=base_url or _environment("WEFT_BASE_URL") or DEFAULT_BASE_URL,
            webhook_secret=webhook_secret or _environment("WEFT_WEBHOOK_SECRET") or "",
            timeout=timeout,
            max_retries=max_retries,
            default_headers=default_headers,
            **options,
        )
        _own(self, admin_api_key, default_headers, options)

    @cached_property
    def adapters(self) -> "Adapters":
        from weft.resources.adapters import Adapters

        return Adapters(self)

    @cached_property
    def files(self) -> "Files":
        from weft.resources.files import Files

        return Files(self)

    @cached_property
    def fine_tuning(self) -> "FineTuning":
        from weft.resources.fine_tuning import FineTuning

        return FineTuning(self)

    @cached_property
    def keys(self) -> "Keys":
        from weft.resources.keys import Keys

        return Keys(self)

    @cached_property
    def projects(self) -> "Projects":
        from weft.resources.projects import Projects

        return Projects(self)

    @cached_property
    def usage(self) -> "Usage":
        from weft.resources.usage import Usage

        return Usage(self)

    @cached_property
    def webhook_endpoints(self) -> "WebhookEndpoints":
        from weft.resources.webhook_endpoints import WebhookEndpoints

        return WebhookEndpoints(self)

    @cached_property
    def webhooks(self) -> "Webhooks":
        from weft.resources.webhooks import Webhooks

        return Webhooks(self)


class AsyncWeft(AsyncOpenAI):
    """An asynchronous client: as Weft, with the methods of `openai.AsyncOpenAI`.

    >>> async def train() -> str:
    ...     async with AsyncWeft(base_url=base_url, api_key=api_key) as client:
    ...         file = await client.files.upload("train.jsonl", "fine-tune")
    ...         job = await client.fine_tuning.jobs.create_and_wait(model="weft-tiny", training_file=file.id)
    ...         return job.status
    >>> asyncio.run(train())
    'succeeded'
    """

    def __init__(
        self,
        *,
        api_key: str | Callable[[], Awaitable[str]] | None = None,
        admin_api_key: str | None = None,
        base_url: "str | URL | None" = None,
        webhook_secret: str | None = None,
        timeout: float | Timeout | NotGiven | None = not_given,
        max_retries: int = 2,
        default_headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        admin_api_key = admin_api_key or _environment("WEFT_ADMIN_KEY")
        super().__init__(
            api_key=api_key or _key(admin_api_key),
            admin_api_key=admin_api_key or "",
            base_url=base_url or _environment("WEFT_BASE_URL") or DEFAULT_BASE_URL,
            webhook_secret=webhook_secret or _environment("WEFT_WEBHOOK_SECRET") or "",
            timeout=timeout,
            max_retries=max_retries,
            default_headers=default_headers,
            **options,
        )
        _own(self, admin_api_key, default_headers, options)

    @cached_property
    def adapters(self) -> "AsyncAdapters":
        from weft.resources.async_adapters import AsyncAdapters

        return AsyncAdapters(self)

    @cached_property
    def files(self) -> "AsyncFiles":
        from weft.resources.files import AsyncFiles

        return AsyncFiles(self)

    @cached_property
    def fine_tuning(self) -> "AsyncFineTuning":
        from weft.resources.fine_tuning import AsyncFineTuning

        return AsyncFineTuning(self)

    @cached_property
    def keys(self) -> "AsyncKeys":
        from weft.resources.keys import AsyncKeys

        return AsyncKeys(self)

    @cached_property
    def projects(self) -> "AsyncProjects":
        from weft.resources.projects import AsyncProjects

        return AsyncProjects(self)

    @cached_property
    def usage(self) -> "AsyncUsage":
        from weft.resources.usage import AsyncUsage

        return AsyncUsage(self)

    @cached_property
    def webhook_endpoints(self) -> "AsyncWebhookEndpoints":
        from weft.resources.webhook_endpoints import AsyncWebhookEndpoints

        return AsyncWebhookEndpoints(self)

    @cached_property
    def webhooks(self) -> "AsyncWebhooks":
        from weft.resources.webhooks import AsyncWebhooks

        return AsyncWebhooks(self)


def _own(
    client: OpenAI | AsyncOpenAI,
    admin_api_key: str | None,
    headers: Mapping[str, str] | None,
    options: Mapping[str, Any],
) -> None:
    """Undoes what the `openai` package took from its own variables, and turns on the idempotency that it has."""
    client.admin_api_key = admin_api_key
    client.organization = options.get("organization")
    client.project = options.get("project")
    client.webhook_secret = client.webhook_secret or None
    client._custom_headers = dict(headers or {})  # pyright: ignore[reportPrivateUsage]
    client._ambient_authorizations = frozenset()  # pyright: ignore[reportPrivateUsage]
    client._idempotency_header = IDEMPOTENCY_HEADER  # pyright: ignore[reportPrivateUsage]


def _key(admin_api_key: str | None) -> str:
    """The project's key, or nothing where there is an administrator's."""
    key = _environment("WEFT_API_KEY")
    if not key and not admin_api_key:
        raise OpenAIError("set WEFT_API_KEY or pass api_key= (for an administrator WEFT_ADMIN_KEY or admin_api_key=)")
    return key or ""


def _environment(variable: str) -> str | None:
    return os.environ.get(variable)  # noqa: TID251 - a client library has no settings module
