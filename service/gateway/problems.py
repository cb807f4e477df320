"""What a replica's refusal means for the client: vLLM's and our plugin's errors in OpenAI's words and codes."""

from collections.abc import Mapping
from typing import Any, cast, get_args

import orjson

from service.contracts.replica import AdapterProblem
from service.errors import ApiError, InvalidRequest, NotFound, RateLimited, Unavailable, Unprocessable
from service.gateway.resolve import Target

ADAPTER_PROBLEMS = frozenset(get_args(AdapterProblem))
NO_CAPACITY = "no_capacity"
PASSING = frozenset({NO_CAPACITY, "adapter_loading", "adapter_storage_unavailable", "adapter_corrupt"})
"""Another replica may do better: any one where this one is full, else one that holds the adapter."""
CLIENT_FAULTS = frozenset({400, 413, 415, 422, 501})
TOO_LONG = "maximum context length"
DEFAULT_RETRY_SECONDS = 1.0


def problem_of(status: int, headers: Mapping[str, str], body: bytes, target: Target) -> ApiError | None:
    """The error to pass on, or None where the replica itself failed, so that another attempt may do better.

    `headers` are by names in lower case.

    vLLM's 404 is such a failure: names were resolved here, and its text lists every tenant's adapters.
    """
    error = _error_of(body)
    code = error.get("code")
    # What a replica says of an adapter names it by id; tenants know it by its public name.
    message = str(error.get("message") or "").replace(target.model, target.name) or None
    if code in ADAPTER_PROBLEMS:
        return _adapter_problem(status, str(code), message, headers)
    if status in CLIENT_FAULTS:
        too_long = message is not None and TOO_LONG in message
        param = str(error["param"]).removeprefix("body.") if error.get("param") else None
        return InvalidRequest(message, param=param, code="context_length_exceeded" if too_long else None)
    if status == 429:
        return RateLimited(message, headers={"Retry-After": headers.get("retry-after", "1")})
    return None


def status_inside(failure: bytes) -> int:
    """The HTTP status that vLLM gives as `code` of an error event."""
    code = _error_of(failure).get("code")
    return code if isinstance(code, int) else 500


def retry_after(error: ApiError) -> float:
    try:
        return float(error.headers.get("Retry-After", ""))
    except ValueError:
        return DEFAULT_RETRY_SECONDS


def _adapter_problem(status: int, code: str, message: str | None, headers: Mapping[str, str]) -> ApiError:
    match status:
        case 404:
            return NotFound(message, code=code, param="model")
        case 422:
            return Unprocessable(message, code=code, param="model")
        case _:
            wait = {"Retry-After": headers["retry-after"]} if "retry-after" in headers else {}
            return Unavailable(message, code=code, param="model", headers=wait)


def _error_of(body: bytes) -> dict[str, Any]:
    try:
        parsed: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    error = cast(dict[str, Any], parsed).get("error") if isinstance(parsed, dict) else None
    return cast(dict[str, Any], error) if isinstance(error, dict) else {}
