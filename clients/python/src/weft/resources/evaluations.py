"""Evaluations of an adapter's versions by a grader over a file of examples."""

import time
from collections.abc import Mapping

import anyio
from typing_extensions import Unpack

from weft.options import Extras, path
from weft.resource import AsyncResource, SyncResource
from weft.resources.events import Deadline
from weft.stock import async_raw, cached_property, raw
from weft.types.adapters import AdapterEvaluation

EVALUATIONS = "/adapters/{}/evaluations"
POLL_SECONDS = 1.0
ENDED = frozenset({"succeeded", "failed"})


class Evaluations(SyncResource):
    """Each method takes the adapter's name."""

    @cached_property
    def with_raw_response(self) -> "EvaluationsWithRawResponse":
        return EvaluationsWithRawResponse(self)

    def create(
        self, adapter: str, *, version: int, file_id: str, grader: Mapping[str, object], **extras: Unpack[Extras]
    ) -> AdapterEvaluation:
        """Begins an evaluation. `grader` is one of OpenAI's shapes, or `loss` or `exact_match`."""
        body = {"version": version, "file_id": file_id, "grader": grader}
        return self._do("post", path(EVALUATIONS, adapter), AdapterEvaluation, extras, body)

    def retrieve(self, adapter: str, evaluation_id: str, **extras: Unpack[Extras]) -> AdapterEvaluation:
        return self._one(path(EVALUATIONS + "/{}", adapter, evaluation_id), AdapterEvaluation, extras)

    def wait(self, adapter: str, evaluation_id: str, *, timeout: float | None = None) -> AdapterEvaluation:
        """The evaluation once it has ended, well or not. Raises WaitTimeout after `timeout` seconds."""
        deadline = Deadline(timeout, f"Evaluation {evaluation_id}")
        while True:
            found = self.retrieve(adapter, evaluation_id)
            if found.status in ENDED:
                return found
            time.sleep(deadline.left(POLL_SECONDS))


class AsyncEvaluations(AsyncResource):
    """As Evaluations; every method is awaited."""

    @cached_property
    def with_raw_response(self) -> "AsyncEvaluationsWithRawResponse":
        return AsyncEvaluationsWithRawResponse(self)

    async def create(
        self, adapter: str, *, version: int, file_id: str, grader: Mapping[str, object], **extras: Unpack[Extras]
    ) -> AdapterEvaluation:
        body = {"version": version, "file_id": file_id, "grader": grader}
        return await self._do("post", path(EVALUATIONS, adapter), AdapterEvaluation, extras, body)

    async def retrieve(self, adapter: str, evaluation_id: str, **extras: Unpack[Extras]) -> AdapterEvaluation:
        return await self._one(path(EVALUATIONS + "/{}", adapter, evaluation_id), AdapterEvaluation, extras)

    async def wait(self, adapter: str, evaluation_id: str, *, timeout: float | None = None) -> AdapterEvaluation:
        deadline = Deadline(timeout, f"Evaluation {evaluation_id}")
        while True:
            found = await self.retrieve(adapter, evaluation_id)
            if found.status in ENDED:
                return found
            await anyio.sleep(deadline.left(POLL_SECONDS))


class EvaluationsWithRawResponse:
    def __init__(self, evaluations: Evaluations) -> None:
        self.create = raw(evaluations.create)
        self.retrieve = raw(evaluations.retrieve)


class AsyncEvaluationsWithRawResponse:
    def __init__(self, evaluations: AsyncEvaluations) -> None:
        self.create = async_raw(evaluations.create)
        self.retrieve = async_raw(evaluations.retrieve)
