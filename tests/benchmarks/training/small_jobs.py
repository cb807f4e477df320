"""Eight small jobs of four tenants, submitted together, four ways: how long until the last adapter is saved.

Through all of Weft but a replica, with eight jobs in the engine at once and with one; through one PEFT process that
keeps the base; through a cold TRL process for each. And how long a job waits for its first optimizer step: from its
claim with a warm base, from the start of the process with TRL. Trainers have one thread everywhere.
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import OpenAI

from service.contracts.job import Hyperparameters, JobSpec
from tests.benchmarks.training.base import EXAMPLES, examples
from tests.benchmarks.training.jobs import FILE, small_job
from tests.benchmarks.training.platform import NAME, Platform

TENANTS, JOBS = 4, 8
SEED = 1
SINGLE_JOBS = 5
WAIT_SECONDS = 600.0
PEFT_PART, TRL_PART, FIRST_STEP_SECONDS = 0.6, 0.45, 1.0

FIRST_STEPS = """
select extract(epoch from job_events.created_at - jobs.started_at)::float8 as seconds
from jobs join job_events on job_events.job_id = jobs.id
where jobs.id = any($1) and job_events.data @> '{"step": 1}'
"""
SPAN = "select extract(epoch from max(finished_at) - min(created_at))::float8 as seconds from jobs where id = any($1)"
LAST_LOSS = """
select avg((data ->> 'train_loss')::float8) as loss
from job_events where job_id = any($1) and (data ->> 'step')::int > $2
"""


@dataclass(frozen=True)
class Tenant:
    """One with its files uploaded."""

    client: OpenAI
    files: list[str]

    @classmethod
    def made(cls, platform: Platform, number: int) -> "Tenant":
        client = platform.client(f"tenant-{number}")
        made = [
            client.files.create(file=("train.jsonl", examples(job)), purpose="fine-tune").id
            for job in range(number, JOBS, TENANTS)
        ]
        return cls(client, made)


@dataclass(frozen=True)
class Submitted:
    client: OpenAI
    job: str

    @classmethod
    def new(cls, tenant: Tenant, file: str) -> "Submitted":
        return cls(tenant.client, tenant.client.fine_tuning.jobs.create(model=NAME, training_file=file, seed=SEED).id)

    def cancel(self) -> None:
        self.client.fine_tuning.jobs.cancel(self.job)


class Weft:
    """The jobs through the API."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._tenants = [Tenant.made(platform, number) for number in range(TENANTS)]

    def submit(self) -> list[Submitted]:
        wanted = [(tenant, file) for tenant in self._tenants for file in tenant.files]
        with ThreadPoolExecutor(len(wanted)) as pool:
            return list(pool.map(lambda one: Submitted.new(*one), wanted))

    async def trained(self, at_once: int) -> tuple[float, float, Hyperparameters]:
        """Seconds from the first submission to the last saved adapter; the jobs' loss in the last epoch, and settings.

        Settings are the service's own choice, the same for all: their files differ in letters alone.
        """
        async with self._platform.trainer(jobs=str(at_once)):
            jobs = [submitted.job for submitted in await asyncio.to_thread(self.submit)]
            await self._until("status in ('succeeded', 'failed', 'cancelled')", jobs)
        found = await self._platform.fetch("select status, error, spec from jobs where id = any($1)", jobs)
        if any(row["status"] != "succeeded" for row in found):
            raise RuntimeError(f"a job did not succeed: {[row['error'] for row in found]}")
        settings = JobSpec.model_validate_json(found[0]["spec"]).hyperparameters
        before_last = (settings.n_epochs - 1) * -(-EXAMPLES // settings.batch_size)
        (span,), (loss,) = (
            await self._platform.fetch(SPAN, jobs),
            await self._platform.fetch(LAST_LOSS, jobs, before_last),
        )
        return span["seconds"], loss["loss"], settings

    async def first_steps(self) -> dict[str, float]:
        """Medians of the seconds from a claim to when the service knows of the job's first optimizer step."""
        async with self._platform.trainer(jobs=str(JOBS)):
            alone = [await self._first_steps(await asyncio.to_thread(self._one)) for _ in range(SINGLE_JOBS)]
            together = await self._first_steps(await asyncio.to_thread(self.submit))
        return {
            "single_jobs": round(statistics.median(seconds for job in alone for seconds in job), 3),
            "eight_together": round(statistics.median(together), 3),
        }

    def _one(self) -> list[Submitted]:
        tenant = self._tenants[0]
        return [Submitted.new(tenant, tenant.files[0])]

    async def _first_steps(self, submitted: list[Submitted]) -> list[float]:
        jobs = [each.job for each in submitted]
        await self._until("step > 0", jobs)
        found = await self._platform.fetch(FIRST_STEPS, jobs)
        for each in submitted:
            await asyncio.to_thread(each.cancel)
        await self._until("status = 'cancelled'", jobs)
        return [row["seconds"] for row in found]

    async def _until(self, condition: str, jobs: list[str]) -> None:
        query = f"select count(*) as jobs from jobs where id = any($1) and {condition}"
        deadline = time.monotonic() + WAIT_SECONDS
        while (await self._platform.fetch(query, jobs))[0]["jobs"] < len(jobs):
            if time.monotonic() > deadline:
                raise RuntimeError(f"jobs are not there after {WAIT_SECONDS:g} s: {condition}")
            await asyncio.sleep(0.3)


def write_jobs(base: Path, settings: Hyperparameters, target: Path) -> None:
    target.write_bytes(FILE.dump_json([small_job(base, settings, SEED, examples(number)) for number in range(JOBS)]))


def run_peft(base: Path, jobs: Path, out: Path) -> dict[str, float]:
    return _last_line("peft_loop", base, jobs, out)


def run_trl(base: Path, jobs: Path, out: Path) -> tuple[list[float], list[float]]:
    """For each job, seconds from the start of its process to the first step, and to the saved adapter."""
    first, saved = [], []
    for number in range(JOBS):
        started = time.time()
        told = _last_line("trl_job", base, jobs, number, out / f"{number}")
        first.append(told["first_step_at"] - started)
        saved.append(told["saved_at"] - started)
    return first, saved


def _last_line(module: str, *arguments: object) -> dict[str, Any]:
    argv = [sys.executable, "-m", f"tests.benchmarks.training.{module}", *map(str, arguments)]
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(argv, capture_output=True, env=os.environ | one_thread, check=False)
    if done.returncode:
        raise RuntimeError(f"{module} failed:\n{done.stderr.decode(errors='replace')[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])
