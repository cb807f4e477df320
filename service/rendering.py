"""The one place that turns what went wrong into an answer: OpenAI's envelope, never a trace or a driver's words."""

import logging
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DBAPIError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match, Route

from service.contracts.store import StoreError
from service.db import DatabaseUnavailable
from service.errors import (
    ApiError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    Unavailable,
    UnsupportedMedia,
)

log = logging.getLogger("service.rendering")

UNEXPECTED = "The server had an error. Try again; if it persists, give your administrator this answer's x-request-id."
NOT_TEXT = {"22021", "22P05"}
"""SQLSTATEs of text that PostgreSQL cannot hold: a NUL character, or no UTF-8 at all."""


def respond(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers)


def unexpected() -> ApiError:
    return ApiError(UNEXPECTED, code="server_error")


async def render(request: Request, error: Exception) -> Response:
    return respond(_translated(request, error))


def _translated(request: Request, error: Exception) -> ApiError:
    match error:
        case ApiError():
            return error
        case RequestValidationError():
            return _invalid(request, error)
        case HTTPException():
            return _of_http(request, error)
        case DatabaseUnavailable():
            log.warning("database unavailable: %s", error)
            return Unavailable("The database cannot be reached just now; try again.")
        case StoreError():
            log.warning("object store unavailable: %s", error)
            return Unavailable("The object store cannot do this just now; try again.", code="storage_unavailable")
        case ClientDisconnect():
            return InvalidRequest("The connection was closed before the request was complete.")
        case DBAPIError() if getattr(error.orig, "sqlstate", None) in NOT_TEXT:
            return InvalidRequest("The request contains a character that cannot be stored, such as NUL.")
        case _:
            raise error


def _invalid(request: Request, error: RequestValidationError) -> ApiError:
    first: dict[str, Any] = error.errors()[0]
    place = [str(part) for part in first["loc"][1:]]
    if first["type"] == "json_invalid":
        return InvalidRequest(f"We could not parse the JSON body of your request: {first['ctx']['error']}.")
    if not place and not request.headers.get("content-type", "").startswith("application/json"):
        return UnsupportedMedia("Send the body as JSON with 'Content-Type: application/json'.")
    if not place:
        return InvalidRequest("The request needs a JSON object as its body.")
    if first["type"] == "extra_forbidden":
        return InvalidRequest(f"Unrecognized request argument supplied: {'.'.join(place)}", param=".".join(place))
    message = str(first["msg"]).removeprefix("Value error, ")
    return InvalidRequest(f"Invalid '{'.'.join(place)}': {message}.", param=".".join(place))


def _of_http(request: Request, error: HTTPException) -> ApiError:
    place = f"{request.method} {request.url.path}"
    headers = dict(error.headers or {})
    match error.status_code:
        case 404:
            return NotFound(f"Invalid URL ({place}).", code="unknown_url", headers=headers)
        case 405:
            return MethodNotAllowed(f"Not allowed: {place}.", headers={"allow": _allowed(request)})
        case 413:
            return PayloadTooLarge(error.detail, headers=headers)
        case 415:
            return UnsupportedMedia(error.detail, headers=headers)
        case 400 if error.__cause__ is not None:
            return InvalidRequest("We could not parse the body of your request.", headers=headers)
        case _:
            return InvalidRequest(error.detail, headers=headers)


def _allowed(request: Request) -> str:
    """The methods of all routes at this address; the framework tells those of the first alone."""
    found = [
        route.methods or ()
        for route in request.app.router.routes
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE
    ]
    return ", ".join(sorted({method for methods in found for method in methods}))


RENDERED = (
    ApiError,
    RequestValidationError,
    HTTPException,
    DatabaseUnavailable,
    StoreError,
    ClientDisconnect,
    DBAPIError,
)
"""What is rendered here; anything else reaches `middleware.RequestFrame`, which logs it and answers 500."""
