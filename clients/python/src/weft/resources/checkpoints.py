"""Models of a job's steps, while it runs and after."""

from typing import TYPE_CHECKING

from openai import Omit, omit
from openai.pagination import AsyncCursorPage, SyncCursorPage
from openai.resources.fine_tuning.jobs import AsyncCheckpoints as OpenAIAsyncCheckpoints
from openai.resources.fine_tuning.jobs import Checkpoints as OpenAICheckpoints
from typing_extensions import Unpack

from weft.options import Extras, options_of, path
from weft.types.jobs import JobCheckpoint

if TYPE_CHECKING:
    from weft.stock import AsyncPaginator

CHECKPOINTS = "/fine_tuning/jobs/{}/checkpoints"


class Checkpoints(OpenAICheckpoints):
    """As `openai`'s."""

    def list(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, fine_tuning_job_id: str, *, after: str | Omit = omit, limit: int | Omit = omit, **extras: Unpack[Extras]
    ) -> SyncCursorPage[JobCheckpoint]:
        """Newest first."""
        where, options = path(CHECKPOINTS, fine_tuning_job_id), options_of(extras, {"after": after, "limit": limit})
        return self._get_api_list(where, model=JobCheckpoint, page=SyncCursorPage[JobCheckpoint], options=options)


class AsyncCheckpoints(OpenAIAsyncCheckpoints):
    """As Checkpoints; every method is awaited."""

    def list(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, fine_tuning_job_id: str, *, after: str | Omit = omit, limit: int | Omit = omit, **extras: Unpack[Extras]
    ) -> "AsyncPaginator[JobCheckpoint, AsyncCursorPage[JobCheckpoint]]":
        where, options = path(CHECKPOINTS, fine_tuning_job_id), options_of(extras, {"after": after, "limit": limit})
        return self._get_api_list(where, model=JobCheckpoint, page=AsyncCursorPage[JobCheckpoint], options=options)
