"""What can stop an adapter from being served, as one exception type and OpenAI's envelope. Knows no HTTP framework."""

import math
from typing import Any, get_args

from service.contracts.replica import AdapterProblem

STATUS: dict[AdapterProblem, int] = {
    "adapter_not_found": 404,
    "adapter_invalid": 422,
    "adapter_corrupt": 503,
    "adapter_storage_unavailable": 503,
    "adapter_loading": 503,
    "no_capacity": 503,
}
RETRY_AFTER: dict[AdapterProblem, float] = {
    "adapter_corrupt": 1.0,
    "adapter_storage_unavailable": 2.0,
    "adapter_loading": 1.0,
    "no_capacity": 1.0,
}
assert set(STATUS) == set(get_args(AdapterProblem))


class AdapterError(Exception):
    """The adapter cannot serve this request; `problem` says why in the contract's words, `message` in the user's."""

    def __init__(self, problem: AdapterProblem, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.problem: AdapterProblem = problem
        self.message = message
        self.retry_after = RETRY_AFTER.get(problem) if retry_after is None else retry_after

    @property
    def status(self) -> int:
        return STATUS[self.problem]

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.retry_after is None else {"retry-after": str(math.ceil(self.retry_after))}

    def body(self) -> dict[str, Any]:
        return envelope(self.status, self.message, code=self.problem, param="model")


def unavailable(reason: str) -> AdapterError:
    return AdapterError("adapter_storage_unavailable", f"The adapter cannot be fetched just now: {reason}.")


def envelope(status: int, message: str, *, code: str, param: str | None = None) -> dict[str, Any]:
    """OpenAI's error body; its `type` follows from the status."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
