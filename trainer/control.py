"""Client of the worker API (`service.contracts.worker`): typed calls, time limits, retries.

Every call may be repeated by contract, so a lost answer is simply asked for again. Owns no policy: what a lost lease
or an absent service means is for the caller.
"""

import asyncio
import random
import time
from typing import ClassVar, TypeVar

import aiohttp
from pydantic import BaseModel, SecretStr, ValidationError

from service.contracts.worker import (
    CheckpointDone,
    CheckpointModel,
    ClaimRequest,
    Control,
    Finish,
    Finished,
    Lease,
    RenewRequest,
    Report,
    UploadRequest,
    UploadTargets,
)

CONNECT_SECONDS = 5.0
ATTEMPT_SECONDS = 20.0
FIRST_PAUSE_SECONDS = 0.2
MAX_PAUSE_SECONDS = 10.0
AGAIN = frozenset({408, 425, 429})

M = TypeVar("M", bound=BaseModel)


class LeaseLost(Exception):
    """Another epoch holds this job, or nobody does. Whatever was about to be written must not be."""


class Refused(Exception):
    """The service understood and said no; repeating the call would not help."""

    def __init__(self, status: int, code: str | None, message: str) -> None:
        super().__init__(f"{message} (HTTP {status}, {code or 'no code'})")
        self.status, self.code, self.message = status, code, message


class ServiceAway(Exception):
    """No usable answer within the caller's patience."""


def pause(attempt: int) -> float:
    """Seconds to wait before try number `attempt` + 2: exponential, with jitter so that agents do not march in step."""
    return random.uniform(0.5, 1.0) * min(MAX_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**attempt)


class WorkerApi:
    """Calls of one area raise LeaseLost, Refused or ServiceAway, the last one after `patience` seconds of trying."""

    PLACE: ClassVar[str]

    def __init__(self, session: aiohttp.ClientSession, url: str, token: SecretStr) -> None:
        self._session = session
        self._url = f"{url.rstrip('/')}/internal/{self.PLACE}"
        self._headers = {"Authorization": f"Bearer {token.get_secret_value()}", "Content-Type": "application/json"}

    async def _call(self, path: str, body: BaseModel, patience: float) -> bytes:
        deadline = time.monotonic() + patience
        attempt = 0
        while True:
            try:
                return await self._once(path, body, ATTEMPT_SECONDS)
            except ServiceAway:
                wait = pause(attempt)
                if time.monotonic() + wait > deadline:
                    raise
            await asyncio.sleep(wait)
            attempt += 1

    async def _once(self, path: str, body: BaseModel, limit: float) -> bytes:
        timeout = aiohttp.ClientTimeout(total=limit, connect=min(CONNECT_SECONDS, limit))
        data = body.model_dump_json().encode()
        try:
            async with self._session.post(
                self._url + path, data=data, headers=self._headers, timeout=timeout
            ) as answer:
                raw = await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ServiceAway(f"{type(error).__name__}: {error}".rstrip(": ")) from error
        if answer.status < 300:
            return raw
        raise _error(answer.status, raw)


class ServiceClient(WorkerApi):
    """Of leases on jobs."""

    PLACE = "leases"

    async def claim(self, request: ClaimRequest) -> Lease | None:
        """One long poll, one try. None when there is nothing to do."""
        raw = await self._once("", request, request.wait_seconds + ATTEMPT_SECONDS)
        return parse(Lease, raw) if raw else None

    async def renew(self, job: str, request: RenewRequest, limit: float) -> Control:
        """One try of at most `limit` seconds: the caller has a deadline of its own to keep."""
        return parse(Control, await self._once(f"/{job}/renew", request, limit))

    async def report(self, job: str, report: Report, patience: float = 0) -> Control:
        return parse(Control, await self._call(f"/{job}/report", report, patience))

    async def uploads(self, job: str, request: UploadRequest, patience: float) -> UploadTargets:
        return parse(UploadTargets, await self._call(f"/{job}/uploads", request, patience))

    async def checkpoint(self, job: str, done: CheckpointDone, patience: float) -> Control:
        return parse(Control, await self._call(f"/{job}/checkpoints", done, patience))

    async def checkpoint_model(self, job: str, model: CheckpointModel, patience: float) -> Control:
        return parse(Control, await self._call(f"/{job}/checkpoint-models", model, patience))

    async def finish(self, job: str, finish: Finish, patience: float) -> Finished:
        return parse(Finished, await self._call(f"/{job}/finish", finish, patience))


def _error(status: int, raw: bytes) -> Exception:
    code, message = _envelope(raw)
    if status == 409 and code == "lease_lost":
        return LeaseLost(message)
    if status >= 500 or status in AGAIN:
        return ServiceAway(f"HTTP {status}: {message}")
    return Refused(status, code, message)


class _ErrorBody(BaseModel):
    message: str = ""
    code: str | None = None


class _Envelope(BaseModel):
    error: _ErrorBody


def _envelope(raw: bytes) -> tuple[str | None, str]:
    try:
        error = _Envelope.model_validate_json(raw).error
    except ValidationError:
        return None, "an answer that is not the service's own"
    return error.code, error.message


def parse(kind: type[M], raw: bytes) -> M:
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        message = f"the answer is no {kind.__name__}: {error.error_count()} problems; do both sides run one version?"
        raise Refused(200, "unknown_answer", message) from None
