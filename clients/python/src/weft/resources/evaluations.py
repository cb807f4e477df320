"""Evaluations of an adapter's versions by a grader over a file of examples."""

import time
from typing import TYPE_CHECKING, Literal

import anyio
from openai import Omit, omit
from openai.pagination import AsyncCursorPage, SyncCursorPage
from typing_extensions import Unpack

from weft.options import Extras, path
from weft.resource import AsyncResource, SyncResource
from weft.resources.events import Deadline
from weft.types.evaluations import AdapterEvaluation, GraderParam

if TYPE_CHECKING:
    from weft.stock import AsyncPaginator

EVALUATIONS = "/adapters/{}/evaluations"
POLL_SECONDS = 1.0
ENDED = frozenset({"succeeded", "failed"})


class Evaluations(SyncResource):
    """Each method takes the adapter's name."""

    def create(
        self, adapter: str, *, version: int, file_id: str, grader: GraderParam, **extras: Unpack[Extras]
    ) -> AdapterEvaluation:
        """Begins an evaluation. `grader` is one of OpenAI's shapes, or of type `loss` or `exact_match`.

        >>> begun = client.adapters.evaluations.create(
        ...     "support-bot", version=1, file_id=held_out_id, grader={"type": "loss"}
        ... )
        >>> found = client.adapters.evaluations.wait("support-bot", begun.id, timeout=60)
        >>> found.status, found.score
        ('succeeded', 0.5)
        """
        body = {"version": version, "file_id": file_id, "grader": grader}
        return self._do("post", path(EVALUATIONS, adapter), AdapterEvaluation, extras, body)

    def list(
        self,
        adapter: str,
        *,
        after: str | Omit = omit,
        limit: int | Omit = omit,
        order: Literal["asc", "desc"] | Omit = omit,
        **extras: Unpack[Extras],
    ) -> SyncCursorPage[AdapterEvaluation]:
        """Newest first, with those that jobs asked for by `on_success`, whose `promotion` says what came of them.

        >>> [evaluation.promotion for evaluation in client.adapters.evaluations.list("support-bot")]
        []
        """
        query = {"after": after, "limit": limit, "order": order}
        return self._pages(path(EVALUATIONS, adapter), AdapterEvaluation, extras, query)

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

    async def create(
        self, adapter: str, *, version: int, file_id: str, grader: GraderParam, **extras: Unpack[Extras]
    ) -> AdapterEvaluation:
        body = {"version": version, "file_id": file_id, "grader": grader}
        return await self._do("post", path(EVALUATIONS, adapter), AdapterEvaluation, extras, body)

    def list(
        self,
        adapter: str,
        *,
        after: str | Omit = omit,
        limit: int | Omit = omit,
        order: Literal["asc", "desc"] | Omit = omit,
        **extras: Unpack[Extras],
    ) -> "AsyncPaginator[AdapterEvaluation, AsyncCursorPage[AdapterEvaluation]]":
        query = {"after": after, "limit": limit, "order": order}
        return self._pages(path(EVALUATIONS, adapter), AdapterEvaluation, extras, query)

    async def retrieve(self, adapter: str, evaluation_id: str, **extras: Unpack[Extras]) -> AdapterEvaluation:
        return await self._one(path(EVALUATIONS + "/{}", adapter, evaluation_id), AdapterEvaluation, extras)

    async def wait(self, adapter: str, evaluation_id: str, *, timeout: float | None = None) -> AdapterEvaluation:
        deadline = Deadline(timeout, f"Evaluation {evaluation_id}")
        while True:
            found = await self.retrieve(adapter, evaluation_id)
            if found.status in ENDED:
                return found
            await anyio.sleep(deadline.left(POLL_SECONDS))
