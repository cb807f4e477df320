"""What went wrong, in one line with the request's id, and the exit status that tells scripts which kind it was."""

import json
import sys
from dataclasses import asdict, dataclass
from typing import Any, cast

import click

FAILED = 1
"""It was tried and did not succeed: a failed job, a file with problems, a request that the service refuses."""
USAGE = 2
NOT_FOUND = 3
AUTHENTICATION = 4
UNAVAILABLE = 5
"""Worth trying again later: unreachable, busy, too many requests."""
CONFLICT = 6
"""Somebody else was faster, or what is to be changed is in use."""
TIMEOUT = 124
INTERRUPTED = 130
PIPE_CLOSED = 141

BY_STATUS = {
    401: AUTHENTICATION,
    403: AUTHENTICATION,
    404: NOT_FOUND,
    408: UNAVAILABLE,
    409: CONFLICT,
    429: UNAVAILABLE,
}
LASTING = frozenset({"insufficient_quota"})
"""Codes of refusals that waiting does not end, whatever their status."""
SILENT = ("usage", "timeout")
"""Codes that say nothing that the message does not."""


class Refusal(Exception):
    """What a command refuses by itself."""

    AUTHENTICATION = AUTHENTICATION
    USAGE = USAGE

    def __init__(self, message: str, exit_status: int = FAILED, code: str | None = None) -> None:
        super().__init__(message)
        self.exit_status, self.code = exit_status, code


@dataclass(frozen=True)
class Failure:
    message: str
    exit_status: int = FAILED
    code: str | None = None
    status: int | None = None
    request_id: str | None = None

    @classmethod
    def of_usage(cls, error: click.ClickException) -> "Failure":
        context = error.ctx if isinstance(error, click.UsageError) else None
        message = error.format_message().rstrip(".")
        if isinstance(error, click.exceptions.NoArgsIsHelpError):
            return cls(message, USAGE, "help")
        if context is not None:
            message += f"; see {context.command_path} --help"
        return cls(message, error.exit_code, "usage")

    @classmethod
    def of(cls, error: Exception) -> "Failure":
        if isinstance(error, Refusal):
            return cls(str(error), error.exit_status, error.code)
        if isinstance(error, OSError) and not isinstance(error, TimeoutError):
            return cls(_of_system(error))
        import httpx2
        import openai

        if isinstance(error, openai.APIStatusError):
            return _of_status(error)
        if isinstance(error, openai.APIConnectionError):
            cause = error.__cause__ or error
            return cls(f"{error.request.url.host}:{error.request.url.port} cannot be reached: {cause}", UNAVAILABLE)
        if isinstance(error, openai.APIError | httpx2.TransportError):
            return cls(f"the answer broke off: {error}", UNAVAILABLE, getattr(error, "code", None))
        return _of_wait(error)

    def line(self) -> str:
        code = None if self.code in SILENT else self.code
        named = [part for part in (code, self.request_id and f"request {self.request_id}") if part]
        # A message of several lines is somebody else's; errors here have one.
        said = " ".join(self.message.split())
        return f"weft: {said} ({', '.join(named)})" if named else f"weft: {said}"


def report(failure: Failure, as_json: bool) -> int:
    """Says it on the standard error stream; the exit status."""
    if failure.code == "help":
        text = failure.message
    elif as_json:
        text = json.dumps({"error": asdict(failure)})
    else:
        text = failure.line()
    sys.stdout.flush()
    sys.stderr.write(text + "\n")
    return failure.exit_status


def _of_system(error: OSError) -> str:
    if error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def _of_status(error: Any) -> Failure:
    found: object = error.body
    body = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    message = body.get("message") or f"the service answered {error.status_code}"
    kind = BY_STATUS.get(error.status_code, UNAVAILABLE if error.status_code >= 500 else FAILED)
    if error.code in LASTING:
        kind = FAILED
    return Failure(str(message).rstrip("."), kind, error.code, error.status_code, error.request_id)


def _of_wait(error: Exception) -> Failure:
    from openai import OpenAIError

    if isinstance(error, TimeoutError):
        return Failure(str(error).rstrip("."), TIMEOUT, "timeout")
    if isinstance(error, OpenAIError):
        return Failure(str(error).rstrip("."), FAILED, getattr(error, "code", None))
    if isinstance(error, ValueError):
        return Failure(str(error), USAGE)
    return Failure(f"unexpected {type(error).__name__}: {error}; `weft --debug …` shows where")
