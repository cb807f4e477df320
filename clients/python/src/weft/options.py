"""What every call of the client takes beside its own arguments, and how it becomes the `openai` package's options."""

from collections.abc import Mapping
from typing import Any, TypedDict
from urllib.parse import quote

from openai import NotGiven, Omit, RequestOptions, Timeout, not_given


class Extras(TypedDict, total=False):
    """As in the `openai` package: they go before what the method or the client says."""

    extra_headers: Mapping[str, str | Omit] | None
    extra_query: Mapping[str, object] | None
    extra_body: object | None
    timeout: float | Timeout | NotGiven | None


EXTRAS = frozenset(Extras.__annotations__)


def given(fields: Mapping[str, object]) -> dict[str, Any]:
    """The fields that were given; None is a value like others."""
    return {name: value for name, value in fields.items() if not isinstance(value, Omit)}


def options_of(extras: Mapping[str, Any], query: Mapping[str, object] | None = None) -> RequestOptions:
    options: RequestOptions = {}
    if extras.get("extra_headers"):
        options["headers"] = extras["extra_headers"]
    params: dict[str, Any] = {**given(query or {}), **(extras.get("extra_query") or {})}
    if params:
        options["params"] = params
    if extras.get("extra_body") is not None:
        options["extra_json"] = extras["extra_body"]
    if not isinstance(extras.get("timeout", not_given), NotGiven):
        options["timeout"] = extras["timeout"]
    return options


def with_header(extras: Mapping[str, Any], name: str, value: object) -> dict[str, Any]:
    """The extras with a header of the method's own, where it is given; a caller's own goes before it."""
    if isinstance(value, Omit):
        return dict(extras)
    return {**extras, "extra_headers": {name: str(value), **(extras.get("extra_headers") or {})}}


def path(template: str, *parts: object) -> str:
    """An address with each `{}` filled. Raises ValueError for what would make it another address."""
    for part in parts:
        if str(part) in ("", ".", ".."):
            raise ValueError(f"{part!r} is no id or name")
    return template.format(*(quote(str(part), safe="@:") for part in parts))
