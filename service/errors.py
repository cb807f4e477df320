"""Errors that carry their own HTTP status and OpenAI code.

    ApiError
    ├── InvalidRequest 400         ├── NotFound 404            ├── PayloadTooLarge 413
    ├── Unauthenticated 401        ├── ModelNotFound 404       ├── UnsupportedMedia 415
    ├── Forbidden 403              ├── MethodNotAllowed 405    ├── RateLimited 429
    ├── Conflict 409               ├── LeaseLost 409           ├── RequestTimeout 408
    ├── Unprocessable 422          ├── HeadersTooLarge 431     └── Unavailable 503

A conflict that a repeat cannot mend says `x-should-retry: false`, since OpenAI's clients retry every 409.
Rendering lives in `service.rendering`, which also maps validation errors and unknown routes to this shape.
"""

from typing import Any, ClassVar


class ApiError(Exception):
    """An error for the caller. The class docstring's first line is the default message."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: str | None = None

    def __init__(
        self,
        message: str | None = None,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        self.message = message or (type(self).__doc__ or "").strip().split("\n")[0]
        super().__init__(self.message)
        self.code = code or type(self).code
        self.param = param
        self.headers = headers or {}
        self.extra = extra or {}

    def body(self) -> dict[str, Any]:
        """The envelope every route answers with: `{"error": {message, type, param, code}}`."""
        envelope = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": {**self.extra, **envelope}}


class InvalidRequest(ApiError):
    """The request is not valid."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class Unauthenticated(ApiError):
    """Incorrect API key provided."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class Forbidden(ApiError):
    """This key may not do that."""

    status = 403
    type = "invalid_request_error"
    code = "insufficient_permissions"


class NotFound(ApiError):
    """No such object."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class ModelNotFound(ApiError):
    """The model does not exist or you do not have access to it."""

    status = 404
    type = "invalid_request_error"
    code = "model_not_found"


class MethodNotAllowed(ApiError):
    """This route does not take that method."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class Conflict(ApiError):
    """The object is not in a state that allows this."""

    status = 409
    type = "invalid_request_error"
    code = "conflict"

    def __init__(self, message: str | None = None, **kwargs: Any) -> None:
        super().__init__(message, **kwargs)
        self.headers.setdefault("x-should-retry", "false")


class LeaseLost(Conflict):
    """The lease is no longer held under this epoch."""

    code = "lease_lost"


class RequestTimeout(ApiError):
    """The request did not arrive in time."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"


class Unprocessable(ApiError):
    """The request is well formed, but what it names cannot be used."""

    status = 422
    type = "invalid_request_error"
    code = "unprocessable"


class PayloadTooLarge(ApiError):
    """The request body is too large."""

    status = 413
    type = "invalid_request_error"
    code = "payload_too_large"


class HeadersTooLarge(ApiError):
    """The request's headers are too many or too large."""

    status = 431
    type = "invalid_request_error"
    code = "headers_too_large"


class UnsupportedMedia(ApiError):
    """The content type or encoding is not supported."""

    status = 415
    type = "invalid_request_error"
    code = "unsupported_media_type"


class RateLimited(ApiError):
    """Rate limit reached."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class Unavailable(ApiError):
    """The service cannot do this just now; try again."""

    status = 503
    type = "server_error"
    code = "unavailable"

    def __init__(self, message: str | None = None, *, retry_after: float = 1.0, **kwargs: Any) -> None:
        super().__init__(message, **kwargs)
        self.headers.setdefault("Retry-After", f"{retry_after:g}")
