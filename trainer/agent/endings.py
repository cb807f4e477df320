"""How a run can end, apart from well. Raised anywhere in a run, turned into a Finish in one place."""

import errno
import shutil
from pathlib import Path

from service.contracts.worker import JobFailure

FULL_BYTES = 32 << 20
"""With less than this left, a child's failure to write is taken for a full disk."""


class JobError(Exception):
    """The job cannot succeed; its owner is told why."""

    def __init__(self, failure: JobFailure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class WorkerUnfit(Exception):
    """This worker cannot do the job just now, another one or a later try may. The job goes back to the queue."""


def job_error(code: str, message: str, param: str | None = None) -> JobError:
    return JobError(JobFailure(code=code, message=message, param=param))


def is_no_space(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def disk_full(folder: Path) -> bool:
    return shutil.disk_usage(folder).free < FULL_BYTES


def no_space() -> WorkerUnfit:
    return WorkerUnfit("No space is left on the worker's disk. The job waits for a worker that has room.")
