"""Fine-tuning jobs: the `openai` package's resource, with Weft's fields and with waiting for a job's end.

A wait follows the job's events as a stream. A broken stream is opened again behind the last event that came; where
streams do not get through at all, the job is asked for every two seconds.
"""

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, cast

import anyio
from httpx2 import TransportError
from openai import APIConnectionError, APIStatusError, AsyncStream, Omit, Stream, omit
from openai.pagination import AsyncCursorPage, SyncCursorPage
from openai.resources.fine_tuning import AsyncJobs as OpenAIAsyncJobs
from openai.resources.fine_tuning import Jobs as OpenAIJobs
from typing_extensions import Unpack

from weft.options import EXTRAS, Extras, given, options_of, path
from weft.resources.checkpoints import AsyncCheckpoints, Checkpoints
from weft.resources.events import Deadline, Following, Frames, outcome
from weft.stock import cached_property
from weft.types.jobs import FineTuningJob, JobEvent, JobRequest

if TYPE_CHECKING:
    from weft.stock import AsyncPaginator

JOBS = "/fine_tuning/jobs"
JOB = JOBS + "/{}"
EVENTS = JOB + "/events"
EVENTS_PAGE = 100
OnEvent = Callable[[JobEvent], object]
OnEventAsync = Callable[[JobEvent], Awaitable[object] | object]


def split(request: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The body of a request and what goes beside it."""
    body = {name: value for name, value in request.items() if name not in EXTRAS}
    return given(body), {name: value for name, value in request.items() if name in EXTRAS}


class Jobs(OpenAIJobs):
    """As `openai`'s, and `wait` and `create_and_wait`."""

    @cached_property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self._client)

    def create(self, **request: Unpack[JobRequest]) -> FineTuningJob:
        """Queues a job. The answer shows every resolved hyperparameter and the rule that chose it.

        >>> method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "lora_rank": 8}}}
        >>> job = client.fine_tuning.jobs.create(model="weft-tiny", training_file=file_id, method=method)
        >>> job.status, job.hyperparameters.n_epochs
        ('queued', 2)
        """
        body, extras = split(request)
        return self._post(JOBS, cast_to=FineTuningJob, body=body, options=options_of(extras))

    def retrieve(self, fine_tuning_job_id: str, **extras: Unpack[Extras]) -> FineTuningJob:
        return self._get(path(JOB, fine_tuning_job_id), cast_to=FineTuningJob, options=options_of(extras))

    def list(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        *,
        after: str | Omit = omit,
        limit: int | Omit = omit,
        metadata: Mapping[str, str] | Omit | None = omit,
        **extras: Unpack[Extras],
    ) -> SyncCursorPage[FineTuningJob]:
        """The project's jobs, newest first; with `metadata` those that have all of it.

        >>> [job.ended for job in client.fine_tuning.jobs.list(limit=10)]
        []
        """
        options = options_of(extras, {"after": after, "limit": limit, "metadata": metadata})
        return self._get_api_list(JOBS, model=FineTuningJob, page=SyncCursorPage[FineTuningJob], options=options)

    def list_events(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, fine_tuning_job_id: str, *, after: str | Omit = omit, limit: int | Omit = omit, **extras: Unpack[Extras]
    ) -> SyncCursorPage[JobEvent]:
        """What has happened to a job, newest first."""
        where, options = path(EVENTS, fine_tuning_job_id), options_of(extras, {"after": after, "limit": limit})
        return self._get_api_list(where, model=JobEvent, page=SyncCursorPage[JobEvent], options=options)

    def cancel(self, fine_tuning_job_id: str, **extras: Unpack[Extras]) -> FineTuningJob:
        return self._tell(fine_tuning_job_id, "cancel", extras)

    def pause(self, fine_tuning_job_id: str, **extras: Unpack[Extras]) -> FineTuningJob:
        return self._tell(fine_tuning_job_id, "pause", extras)

    def resume(self, fine_tuning_job_id: str, **extras: Unpack[Extras]) -> FineTuningJob:
        return self._tell(fine_tuning_job_id, "resume", extras)

    def wait(
        self,
        fine_tuning_job_id: str,
        *,
        on_event: OnEvent | None = None,
        timeout: float | None = None,
    ) -> FineTuningJob:
        """The job once it has succeeded; `on_event` is told everything that has happened and happens, in order.

        Raises JobFailed, JobCancelled, and WaitTimeout after `timeout` seconds. A paused job is waited for.

            >>> job = client.fine_tuning.jobs.create(model="weft-tiny", training_file=file_id)
            >>> heard = []
            >>> job = client.fine_tuning.jobs.wait(job.id, on_event=heard.append, timeout=60)
            >>> job.fine_tuned_model.startswith("ft:weft-tiny:")
            True
            >>> [event.data["step"] for event in heard if event.type == "metrics"]
            [1, 2]
        """
        following = Following(fine_tuning_job_id, Deadline(timeout, f"Job {fine_tuning_job_id}"))
        while not self._follow(following, on_event):
            time.sleep(following.pause())
        return outcome(self.retrieve(fine_tuning_job_id))

    def create_and_wait(
        self,
        *,
        on_event: OnEvent | None = None,
        wait_timeout: float | None = None,
        **request: Unpack[JobRequest],
    ) -> FineTuningJob:
        """`create`, then `wait` for up to `wait_timeout` seconds."""
        return self.wait(self.create(**request).id, on_event=on_event, timeout=wait_timeout)

    def _tell(self, job_id: str, verb: str, extras: Mapping[str, Any]) -> FineTuningJob:
        where = path("/fine_tuning/jobs/{}/" + verb, job_id)
        return self._post(where, cast_to=FineTuningJob, options=options_of(extras))

    def _follow(self, following: Following, on_event: OnEvent | None) -> bool:
        """Whether the job has ended and everything was told."""
        try:
            return (self._poll if following.polling else self._stream)(following, on_event)
        except APIStatusError as error:
            following.refused(error)
        except (APIConnectionError, TransportError) as error:
            following.lost(error)
        return False

    def _stream(self, following: Following, on_event: OnEvent | None) -> bool:
        where, options = path(EVENTS, following.job_id), cast(Any, following.begin())
        kind = Stream[JobEvent]
        stream = self._get(where, cast_to=JobEvent, options=options, stream=True, stream_cls=kind)
        with stream:
            if not following.is_stream(stream.response.headers.get("content-type", "")):
                return False
            frames = Frames()
            for piece in stream.response.iter_bytes():
                _tell(on_event, following.read(frames, piece))
                if following.done or following.stale:
                    return following.done
        following.cut()
        return False

    def _poll(self, following: Following, on_event: OnEvent | None) -> bool:
        job = self.retrieve(following.job_id, timeout=following.deadline.left(60))
        found: list[JobEvent] = []
        for event in self.list_events(following.job_id, limit=EVENTS_PAGE):
            if following.known(event):
                break
            found.append(event)
        _tell(on_event, following.new(reversed(found)))
        following.reached()
        return job.ended


class AsyncJobs(OpenAIAsyncJobs):
    """As Jobs; every method is awaited. `on_event` may be a plain function or one that is awaited."""

    @cached_property
    def checkpoints(self) -> AsyncCheckpoints:
        return AsyncCheckpoints(self._client)

    async def create(self, **request: Unpack[JobRequest]) -> FineTuningJob:
        body, extras = split(request)
        return await self._post(JOBS, cast_to=FineTuningJob, body=body, options=options_of(extras))

    async def retrieve(self, fine_tuning_job_id: str, **extras: Unpack[Extras]) -> FineTuningJob:
        return await self._get(path(JOB, fine_tuning_job_id), cast_to=FineTuningJob, options=options_of(extras))

    def list(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        *,
        after: str | Omit = omit,
        limit: int | Omit = omit,
        metadata: Mapping[str, str] | Omit | None = omit,
        **extras: Unpack[Extras],
    ) -> "AsyncPaginator[FineTuningJob, AsyncCursorPage[FineTuningJob]]":
        options = options_of(extras, {"after": after, "limit": limit, "metadata": metadata})
        return self._get_api_list(JOBS, model=FineTuningJob, page=AsyncCursorPage[FineTuningJob], options=options)

    def list_events(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, fine_tuning_job_id: str, *, after: str | Omit = omit, limit: int | Omit = omit, **extras: Unpack[Extras]
    ) -> "AsyncPaginator[JobEvent, AsyncCursorPage[JobEvent]]":
        where, options = path(EVENTS, fine_tuning_job_id), options_of(extras, {"after": after, "limit": limit})
        return self._get_api_list(where, model=JobEvent, page=AsyncCursorPage[JobEvent], options=options)

    async def cancel(self, fine_tuning_job_id: str, **extras: Unpack[Extras]) -> FineTuningJob:
        return await self._tell(fine_tuning_job_id, "cancel", extras)

    async def pause(self, fine_tuning_job_id: str, **extras: Unpack[Extras]) -> FineTuningJob:
        return await self._tell(fine_tuning_job_id, "pause", extras)

    async def resume(self, fine_tuning_job_id: str, **extras: Unpack[Extras]) -> FineTuningJob:
        return await self._tell(fine_tuning_job_id, "resume", extras)

    async def wait(
        self,
        fine_tuning_job_id: str,
        *,
        on_event: OnEventAsync | None = None,
        timeout: float | None = None,
    ) -> FineTuningJob:
        following = Following(fine_tuning_job_id, Deadline(timeout, f"Job {fine_tuning_job_id}"))
        while not await self._follow(following, on_event):  # noqa: ASYNC110 - what is waited for is in another process
            await anyio.sleep(following.pause())
        return outcome(await self.retrieve(fine_tuning_job_id))

    async def create_and_wait(
        self,
        *,
        on_event: OnEventAsync | None = None,
        wait_timeout: float | None = None,
        **request: Unpack[JobRequest],
    ) -> FineTuningJob:
        job = await self.create(**request)
        return await self.wait(job.id, on_event=on_event, timeout=wait_timeout)

    async def _tell(self, job_id: str, verb: str, extras: Mapping[str, Any]) -> FineTuningJob:
        where = path("/fine_tuning/jobs/{}/" + verb, job_id)
        return await self._post(where, cast_to=FineTuningJob, options=options_of(extras))

    async def _follow(self, following: Following, on_event: OnEventAsync | None) -> bool:
        try:
            return await (self._poll if following.polling else self._stream)(following, on_event)
        except APIStatusError as error:
            following.refused(error)
        except (APIConnectionError, TransportError) as error:
            following.lost(error)
        return False

    async def _stream(self, following: Following, on_event: OnEventAsync | None) -> bool:
        where, options = path(EVENTS, following.job_id), cast(Any, following.begin())
        kind = AsyncStream[JobEvent]
        stream = await self._get(where, cast_to=JobEvent, options=options, stream=True, stream_cls=kind)
        async with stream:
            if not following.is_stream(stream.response.headers.get("content-type", "")):
                return False
            frames = Frames()
            async for piece in stream.response.aiter_bytes():
                await _tell_async(on_event, following.read(frames, piece))
                if following.done or following.stale:
                    return following.done
        following.cut()
        return False

    async def _poll(self, following: Following, on_event: OnEventAsync | None) -> bool:
        job = await self.retrieve(following.job_id, timeout=following.deadline.left(60))
        found: list[JobEvent] = []
        async for event in self.list_events(following.job_id, limit=EVENTS_PAGE):
            if following.known(event):
                break
            found.append(event)
        await _tell_async(on_event, following.new(reversed(found)))
        following.reached()
        return job.ended


def _tell(on_event: OnEvent | None, events: Iterable[JobEvent]) -> None:
    for event in events:
        if on_event is not None:
            on_event(event)


async def _tell_async(on_event: OnEventAsync | None, events: Iterable[JobEvent]) -> None:
    for event in events:
        told = None if on_event is None else on_event(event)
        if isawaitable(told):
            await told
