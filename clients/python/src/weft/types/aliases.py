"""Aliases of adapters: what each stands for, what has become of its requests, and how it has changed."""

from typing import Literal, Required, TypedDict

from openai import BaseModel


class Share(BaseModel):
    version: int
    weight: float


class Shadow(BaseModel):
    version: int
    fraction: float


class AutomaticRollback(BaseModel):
    """Back to the version before, once more than `max_error_rate` of at least `min_requests` requests have failed."""

    max_error_rate: float
    min_requests: int
    window_seconds: int


class AdapterAlias(BaseModel):
    """Points at a version; may split traffic over several and may copy some of it to another."""

    id: str
    """How a request names it as its model."""
    object: Literal["adapter.alias"] = "adapter.alias"
    adapter: str
    alias: str
    version: int
    traffic: list[Share] | None = None
    shadow: Shadow | None = None
    automatic_rollback: AutomaticRollback | None = None
    revision: int
    """Grows with every change; give it as `if_revision` to change only what you have seen."""
    updated_at: int


class VersionTraffic(BaseModel):
    """What became of the requests that one version got. `fraction` is the part that it is meant to get or be copied.

    `errors` failed through no fault of the client; what the client did wrong is not even in `requests`.
    The times are means, in milliseconds: to the first token of streams, and to the end of other answers.
    """

    version: int
    model: str
    shadow: bool
    fraction: float
    requests: int
    errors: int
    error_rate: float | None = None
    input_tokens: int
    output_tokens: int
    first_token_ms: float | None = None
    answer_ms: float | None = None


class AliasTraffic(BaseModel):
    """Of every version that an alias sends anything to, since it came to its present `revision`."""

    object: Literal["adapter.alias.traffic"] = "adapter.alias.traffic"
    adapter: str
    alias: str
    revision: int
    since: int
    versions: list[VersionTraffic]


class AdapterChange(BaseModel):
    """An entry of an adapter's history. `traffic` and `shadow` are those that the change led to."""

    id: str
    object: Literal["adapter.change"] = "adapter.change"
    adapter: str
    alias: str
    revision: int
    action: Literal["promote", "rollback", "automatic_rollback", "traffic", "shadow", "update", "delete"] | str
    from_version: int | None = None
    to_version: int | None = None
    traffic: list[Share] | None = None
    shadow: Shadow | None = None
    actor: str | None = None
    """The id of the key that made it."""
    reason: str | None = None
    created_at: int


class AliasDeleted(BaseModel):
    id: str
    object: Literal["adapter.alias"] = "adapter.alias"
    adapter: str
    alias: str
    deleted: bool


class ShareParam(TypedDict):
    version: int
    weight: float


class ShadowParam(TypedDict):
    version: int
    fraction: float


class AutomaticRollbackParam(TypedDict, total=False):
    max_error_rate: Required[float]
    min_requests: int
    window_seconds: int
