"""The agent's folder on the local disk: one agent at a time, nothing left from an earlier one."""

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.contracts.worker import Lease

JOB_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$")
JOBS = "jobs"


class WorkDirTaken(Exception):
    """Another agent is at work in this folder."""


@contextmanager
def claimed(work_dir: Path) -> Iterator[Path]:
    """Holds `work_dir` for this process and yields an empty folder in it for jobs. Raises WorkDirTaken."""
    work_dir.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(work_dir / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WorkDirTaken(
                f"another trainer is at work in {work_dir}; give this one its own WEFT_TRAINER_WORK_DIR"
            ) from None
        jobs = work_dir / JOBS
        shutil.rmtree(jobs, ignore_errors=True)
        jobs.mkdir()
        yield jobs
    finally:
        os.close(descriptor)


def job_folder(jobs: Path, lease: Lease) -> Path:
    """Raises ValueError for an id that is no plain name."""
    if not JOB_ID.fullmatch(lease.spec.job_id):
        raise ValueError("the service named a job by something that is no id")
    return jobs / f"{lease.spec.job_id}-e{lease.epoch}"
