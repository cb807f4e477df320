"""One tenant of the demo: its project's key, data, training job and questions. All through the `openai` SDK."""

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

from deploy.local.folder import StackError
from deploy.local.tiny_base import tasks

POLL_SECONDS = 0.3
ANSWER_TOKENS = 96
AT_ONCE = 8
ENDED = ("succeeded", "failed", "cancelled")

Progress = Callable[[str, int, int, str], None]
"""Told the tenant's name, the step, the number of steps and a word on the state."""


@dataclass(frozen=True)
class Trained:
    model: str
    seconds: float
    first_token_seconds: float
    """From the job's last step, as its events show it, to the first token of its adapter."""


class Tenant:
    def __init__(self, name: str, url: str, key: str, examples: int, held_out: int) -> None:
        self.name = name
        self.key = key
        self._client = OpenAI(base_url=f"{url}/v1", api_key=key)
        self.training, self.held_out = tasks.split(name, examples, held_out)

    def base_model(self) -> str:
        return next(model.id for model in self._client.models.list() if not model.id.startswith("ft:"))

    def upload(self) -> str:
        lines = "".join(json.dumps(line) + "\n" for line in self.training)
        return self._client.files.create(file=(f"{self.name}.jsonl", lines.encode()), purpose="fine-tune").id

    def train(self, file: str, base: str, settings: dict[str, Any], progress: Progress) -> Trained:
        """Creates the job and follows it to its end. Raises StackError where it did not succeed."""
        began = time.monotonic()
        job = self._client.fine_tuning.jobs.create(
            model=base,
            training_file=file,
            suffix=self.name,
            seed=0,
            method={"type": "supervised", "supervised": {"hyperparameters": settings}},  # type: ignore[typeddict-item]
        )
        job, last_step = self._follow(job, progress)
        if job.status != "succeeded" or job.fine_tuned_model is None:
            reason = job.error.message if job.error else "no reason given"
            raise StackError(f"the job of {self.name} {job.status}: {reason}")
        ended = time.monotonic()
        self.ask(job.fine_tuned_model, self.held_out[0], tokens=1)
        return Trained(job.fine_tuned_model, ended - began, time.monotonic() - last_step)

    def ask(self, model: str, line: tasks.Line, tokens: int = ANSWER_TOKENS) -> str:
        """The model's answer to the question of one example."""
        question = [message for message in line["messages"] if message["role"] != "assistant"]
        answer = self._client.chat.completions.create(
            model=model,
            messages=question,  # type: ignore[arg-type]
            temperature=0,
            max_tokens=tokens,
        )
        return answer.choices[0].message.content or ""

    def accuracy(self, model: str, lines: Sequence[tasks.Line], done: Callable[[], None]) -> float:
        """The part of `lines` that `model` answers exactly as expected."""

        def right(line: tasks.Line) -> bool:
            answer = self.ask(model, line)
            done()
            return answer == expected(line)

        with ThreadPoolExecutor(AT_ONCE) as threads:
            return sum(threads.map(right, lines)) / len(lines)

    def _follow(self, job: FineTuningJob, progress: Progress) -> tuple[FineTuningJob, float]:
        last_step = time.monotonic()
        seen = 0
        while job.status not in ENDED:
            time.sleep(POLL_SECONDS)
            step, steps = self._step(job.id)
            if step > seen:
                seen, last_step = step, time.monotonic()
            job = self._client.fine_tuning.jobs.retrieve(job.id)
            progress(self.name, step, steps, job.status)
        return job, last_step

    def _step(self, job: str) -> tuple[int, int]:
        for event in self._client.fine_tuning.jobs.list_events(job, limit=20).data:
            data = event.data
            if event.type == "metrics" and isinstance(data, dict) and "total_steps" in data:
                return int(data["step"]), int(data["total_steps"])
        return 0, 0


def expected(line: tasks.Line) -> str:
    return line["messages"][-1]["content"]
