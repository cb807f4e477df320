"""A job's events as they happen: cutting the stream into events, and what a reader of it keeps in mind.

A stream that breaks is opened again behind the last event that came. A service that cannot be reached is waited for up
to PATIENCE_SECONDS: it may be starting again. Where streams do not get through, the job is polled.
"""

import json
import time
from collections.abc import Iterable, Iterator
from typing import Any

from openai import APIStatusError, Timeout

from weft.errors import JobCancelled, JobFailed, WaitTimeout
from weft.types.jobs import FineTuningJob, JobEvent

KEEP_ALIVE_SECONDS = 15.0
"""How long a healthy stream says nothing."""
READ_SECONDS = 3 * KEEP_ALIVE_SECONDS
PATIENCE_SECONDS = 300.0
POLL_SECONDS = 2.0
STREAM_SECONDS = 0.2
SILENT_STREAMS = 3
POLLS_BETWEEN_STREAMS = 15
NO_STREAMS = (405, 406, 429)
DONE = "[DONE]"


class Frames:
    """Cuts a stream's bytes into events. `last_id` is the id of the last one, to go on behind it."""

    def __init__(self, last_id: str | None = None) -> None:
        self.last_id = last_id
        self._rest = b""
        self._data: list[str] = []
        self._id: str | None = None

    def feed(self, piece: bytes) -> Iterator[str]:
        """The data of each event that is whole now."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            field_name, _, value = line.rstrip(b"\r").decode().partition(":")
            value = value.removeprefix(" ")
            if field_name == "data":
                self._data.append(value)
            elif field_name == "id":
                self._id = value
            elif not field_name and not value and self._data:
                data, self._data = "\n".join(self._data), []
                self.last_id = self._id or self.last_id
                yield data


class Deadline:
    """When a caller no longer waits; without `seconds` never."""

    def __init__(self, seconds: float | None, what: str) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds
        self._seconds, self._what = seconds, what

    def left(self, most: float) -> float:
        """How long something may take that would otherwise take up to `most`. Raises WaitTimeout."""
        if self._end is None:
            return most
        left = self._end - time.monotonic()
        if left <= 0:
            raise WaitTimeout(f"{self._what} has not ended within {self._seconds:g} s; it goes on, wait for it again.")
        return min(left, most)


class Following:
    """What has been told of a job so far, and how its service is best asked for more."""

    def __init__(self, job_id: str, deadline: Deadline) -> None:
        self.job_id, self.deadline = job_id, deadline
        self.polling = False
        """Streams do not get through, so the job is asked for again and again."""
        self.done = False
        """The stream has come to its proper end."""
        self._last_id: str | None = None
        self._seen: set[str] = set()
        self._silent = self._polls = 0
        self._lost_since: float | None = None
        self._read = READ_SECONDS

    def begin(self) -> dict[str, Any]:
        """The options of the request that opens the stream behind what was told."""
        self._read = self.deadline.left(READ_SECONDS)
        headers = {"Accept": "text/event-stream"}
        if self._last_id is not None:
            headers["Last-Event-ID"] = self._last_id
        timeout = Timeout(60.0, connect=5.0, read=self._read)
        return {"params": {"stream": "true"}, "headers": headers, "timeout": timeout, "max_retries": 0}

    def read(self, frames: Frames, piece: bytes) -> Iterator[JobEvent]:
        """The new events of a piece of the stream."""
        self._lost_since = None
        for data in frames.feed(piece):
            if data == DONE:
                self.done = True
                return
            self._silent = 0
            yield from self.new([JobEvent.construct(None, **json.loads(data))])
            self._last_id = frames.last_id

    @property
    def stale(self) -> bool:
        """Whether the stream should be opened anew so that a silence at its end does not outlast the deadline."""
        left = self.deadline.left(READ_SECONDS)
        return left < KEEP_ALIVE_SECONDS and self._read - left > 1

    def new(self, events: Iterable[JobEvent]) -> Iterator[JobEvent]:
        """Those that have not been told; by being given they are."""
        for event in events:
            if event.id not in self._seen:
                self._seen.add(event.id)
                yield event

    def known(self, event: JobEvent) -> bool:
        return event.id in self._seen

    def is_stream(self, content_type: str) -> bool:
        self.polling = not content_type.startswith("text/event-stream")
        return not self.polling

    def cut(self) -> None:
        """A stream has ended before the job, or did not even begin. Those that bring nothing are not tried for ever."""
        self._silent += 1
        self.polling = self.polling or self._silent >= SILENT_STREAMS

    def lost(self, error: Exception) -> None:
        """The service cannot be reached; it may be on its way up again. Raises the error when that lasts."""
        now = time.monotonic()
        self._lost_since = self._lost_since or now
        self.cut()
        if now - self._lost_since > PATIENCE_SECONDS:
            raise error

    def refused(self, error: APIStatusError) -> None:
        """Raises the error where asking again would not help."""
        if error.status_code in NO_STREAMS and not self.polling:
            self.polling = True
        elif error.status_code in (408, 429) or error.status_code >= 500:
            self.lost(error)
        else:
            raise error

    def reached(self) -> None:
        """A poll got through; now and then a stream may too."""
        self._lost_since = None
        self._polls += 1
        if self._polls % POLLS_BETWEEN_STREAMS == 0:
            self.polling = False

    def pause(self) -> float:
        """How long to wait before asking again. Raises WaitTimeout."""
        return self.deadline.left(POLL_SECONDS if self.polling or self._lost_since else STREAM_SECONDS)


def outcome(job: FineTuningJob) -> FineTuningJob:
    """The job where it has succeeded. Raises JobFailed and JobCancelled."""
    if job.status == "failed":
        raise JobFailed(job)
    if job.status == "cancelled":
        raise JobCancelled(job)
    return job
