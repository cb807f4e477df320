"""What the client raises beside the `openai` package's errors; all of it is an OpenAIError."""

from typing import TYPE_CHECKING

from openai import OpenAIError

if TYPE_CHECKING:
    from weft.types import AdapterExport, AdapterImport, FineTuningJob


class JobEnded(OpenAIError):
    """A job that was waited for has ended without a model. `job` is how it ended."""

    def __init__(self, job: "FineTuningJob", message: str) -> None:
        super().__init__(message)
        self.job = job


class JobFailed(JobEnded):
    """The job failed; `code` and `reason` are those of the job's error."""

    def __init__(self, job: "FineTuningJob") -> None:
        self.code = job.error.code if job.error else None
        self.reason = job.error.message if job.error else "no reason was given"
        super().__init__(job, f"Job {job.id} failed: {self.reason}")


class JobCancelled(JobEnded):
    """Somebody cancelled the job."""

    def __init__(self, job: "FineTuningJob") -> None:
        super().__init__(job, f"Job {job.id} was cancelled.")


class WaitTimeout(OpenAIError, TimeoutError):
    """What was waited for goes on at the service, but `timeout` seconds have passed."""


class ImportFailed(OpenAIError):
    """The service refused an adapter; `code` and `reason` say why."""

    def __init__(self, imported: "AdapterImport") -> None:
        self.imported = imported
        self.code = imported.error.code if imported.error else None
        self.reason = imported.error.message if imported.error else "no reason was given"
        super().__init__(f"Import {imported.id} failed: {self.reason}")


class ExportFailed(OpenAIError):
    """The service could not make an export; `code` and `reason` say why."""

    def __init__(self, exported: "AdapterExport") -> None:
        self.exported = exported
        self.code = exported.error.code if exported.error else exported.status
        self.reason = exported.error.message if exported.error else f"it has {exported.status}; export it again"
        super().__init__(f"There is no export {exported.id}: {self.reason}")


class DamagedDownload(OpenAIError):
    """What arrived is not what the service says it holds; nothing was left behind."""


class FileChanged(OpenAIError):
    """The local file changed while it was being uploaded."""
