"""Lines of a batch's input on their way in, and of its files on their way out."""

from collections.abc import AsyncGenerator, Collection
from dataclasses import dataclass
from typing import Any

import orjson

from service.contracts.ids import new_batch_request_id, new_request_id
from service.contracts.store import ObjectStore
from service.errors import ApiError
from service.files.stored import stored_lines
from service.gateway.events import Usage
from service.gateway.exchange import Answered
from service.gateway.resolve import Target

NOTHING = Usage(0, 0)


@dataclass(frozen=True, slots=True)
class Line:
    """One request, `number` being its line in the file."""

    number: int
    custom_id: str
    url: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one line, as it goes into the output file or, where it is not `good`, into the error file.

    `model` is the name under which it is booked, None where there is nothing to book.
    """

    number: int
    text: bytes
    good: bool
    request_id: str
    model: str | None = None
    base_model: str | None = None
    usage: Usage = NOTHING


async def lines_of(store: ObjectStore, key: str, done: Collection[int]) -> AsyncGenerator[Line]:
    """The lines that are not done. The file was checked when it was uploaded."""
    async for number, line in stored_lines(store, key):
        if number not in done:
            value = orjson.loads(line)
            yield Line(number, value["custom_id"], value["url"], value["body"])


def answered(line: Line, answer: Answered, target: Target) -> Result:
    text = _text(line, response=_response(200, answer.request_id, orjson.Fragment(answer.body)))
    return Result(line.number, text, True, answer.request_id, target.name, target.base, answer.usage)


def refused(line: Line, problem: ApiError) -> Result:
    request_id = new_request_id()
    text = _text(line, response=_response(problem.status, request_id, problem.body()))
    return Result(line.number, text, False, request_id)


def left_out(line: Line) -> Result:
    """Of a batch whose time is up."""
    message = "This request could not be executed before the completion window expired."
    return Result(line.number, _text(line, error={"code": "batch_expired", "message": message}), False, "")


def _response(status: int, request_id: str, body: Any) -> dict[str, Any]:
    return {"status_code": status, "request_id": request_id, "body": body}


def _text(line: Line, response: dict[str, Any] | None = None, error: dict[str, str] | None = None) -> bytes:
    told = {"id": new_batch_request_id(), "custom_id": line.custom_id, "response": response, "error": error}
    return orjson.dumps(told) + b"\n"
