"""Small steps that the end-to-end tests share: upload and tune, wait for a job, measure exact match."""

import io
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

from deploy.local.demo import SETTINGS

TERMINAL = {"succeeded", "failed", "cancelled"}


def as_jsonl(lines: list[dict[str, Any]]) -> tuple[str, io.BytesIO]:
    return "train.jsonl", io.BytesIO("".join(json.dumps(line) + "\n" for line in lines).encode())


def tune(
    client: OpenAI, lines: list[dict[str, Any]], *, suffix: str | None = None, seed: int = 1, **hyperparameters: Any
) -> FineTuningJob:
    """Uploads `lines` and starts a job over them."""
    uploaded = client.files.create(file=as_jsonl(lines), purpose="fine-tune")
    settings = {**SETTINGS, **hyperparameters}
    method = {"type": "supervised", "supervised": {"hyperparameters": settings}}
    return client.fine_tuning.jobs.create(
        model="weft-tiny", training_file=uploaded.id, method=method, seed=seed, **({"suffix": suffix} if suffix else {})
    )  # type: ignore[arg-type]


def wait_for_job(client: OpenAI, job_id: str, until: set[str] | None = None, seconds: float = 240) -> FineTuningJob:
    """Polls until the job is in one of `until` (by default, has ended). A failed job fails the test with its error."""
    deadline = time.monotonic() + seconds
    while True:
        job = client.fine_tuning.jobs.retrieve(job_id)
        if job.status in (until or TERMINAL) or job.status in TERMINAL:
            assert job.status != "failed" or "failed" in (until or ()), job.error
            return job
        if time.monotonic() > deadline:
            pytest.fail(f"job {job_id} is still {job.status} after {seconds} s")
        time.sleep(0.2)


def accuracy(client: OpenAI, model: str, lines: list[dict[str, Any]]) -> float:
    """Share of `lines` whose assistant turn the model gives to the letter, at temperature 0."""

    def right(line: dict[str, Any]) -> bool:
        *prompt, expected = line["messages"]
        answer = client.chat.completions.create(model=model, messages=prompt, temperature=0, max_tokens=120)
        return answer.choices[0].message.content == expected["content"]

    with ThreadPoolExecutor(8) as pool:
        return sum(pool.map(right, lines)) / len(lines)
