"""`client.fine_tuning`: the `openai` package's resources, with estimates and imports of OpenAI's jobs."""

from collections.abc import Mapping

from openai import Omit, omit
from openai.resources.fine_tuning import AsyncFineTuning as OpenAIAsyncFineTuning
from openai.resources.fine_tuning import FineTuning as OpenAIFineTuning
from typing_extensions import Unpack

from weft.options import Extras
from weft.resource import AsyncResource, SyncResource
from weft.resources.jobs import AsyncJobs, Jobs, split
from weft.stock import cached_property
from weft.types.jobs import Estimate, JobImport, JobRequest


class Estimates(SyncResource):
    """What jobs would take."""

    def create(self, **request: Unpack[JobRequest]) -> Estimate:
        """What a job would take. Everything that creating checks is checked, and no job is made.

        >>> estimate = client.fine_tuning.estimates.create(model="weft-tiny", training_file=file_id)
        >>> estimate.trained_tokens <= estimate.tokens * 3
        True
        >>> estimate.cost.currency
        'usd'
        """
        body, extras = split(request)
        return self._do("post", "/fine_tuning/estimates", Estimate, extras, body)


class AsyncEstimates(AsyncResource):
    """As Estimates; every method is awaited."""

    async def create(self, **request: Unpack[JobRequest]) -> Estimate:
        body, extras = split(request)
        return await self._do("post", "/fine_tuning/estimates", Estimate, extras, body)


class JobImports(SyncResource):
    """Jobs made like those that ran at OpenAI."""

    def create(
        self,
        *,
        job: Mapping[str, object],
        training_file: str,
        validation_file: str | Omit | None = omit,
        model: str | Omit | None = omit,
        **extras: Unpack[Extras],
    ) -> JobImport:
        """Makes a job from OpenAI's job object and the training file uploaded here.

        >>> theirs = {"object": "fine_tuning.job", "model": "gpt-4o-mini", "seed": 7}
        >>> made = client.fine_tuning.imports.create(job=theirs, training_file=file_id, model="weft-tiny")
        >>> made.job.seed
        7
        """
        body = {"job": job, "training_file": training_file, "validation_file": validation_file, "model": model}
        return self._do("post", "/fine_tuning/imports", JobImport, extras, body)


class AsyncJobImports(AsyncResource):
    """As JobImports; every method is awaited."""

    async def create(
        self,
        *,
        job: Mapping[str, object],
        training_file: str,
        validation_file: str | Omit | None = omit,
        model: str | Omit | None = omit,
        **extras: Unpack[Extras],
    ) -> JobImport:
        body = {"job": job, "training_file": training_file, "validation_file": validation_file, "model": model}
        return await self._do("post", "/fine_tuning/imports", JobImport, extras, body)


class FineTuning(OpenAIFineTuning):
    """As `openai`'s, and `estimates` and `imports`."""

    @cached_property
    def jobs(self) -> Jobs:
        return Jobs(self._client)

    @cached_property
    def estimates(self) -> Estimates:
        return Estimates(self._client)

    @cached_property
    def imports(self) -> JobImports:
        return JobImports(self._client)


class AsyncFineTuning(OpenAIAsyncFineTuning):
    """As FineTuning, for the asynchronous client."""

    @cached_property
    def jobs(self) -> AsyncJobs:
        return AsyncJobs(self._client)

    @cached_property
    def estimates(self) -> AsyncEstimates:
        return AsyncEstimates(self._client)

    @cached_property
    def imports(self) -> AsyncJobImports:
        return AsyncJobImports(self._client)
