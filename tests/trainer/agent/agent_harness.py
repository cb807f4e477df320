"""An agent process under test, with children real or scripted behind it."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.contracts.job import Hyperparameters, JobSpec
from tests.trainer.agent.stand_in_service import Job, StandInService
from tests.trainer.agent.stand_in_store import TOKEN

HERE = Path(__file__).parent
FINGERPRINT = "f" * 64
LINES = b'{"messages": []}\n' * 8


async def until(condition: Callable[[], Any], seconds: float = 20.0, what: str = "condition") -> None:
    """Polls `condition` until it holds; fails the test after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not hold within {seconds} s")
        await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    """Running, and not a zombie that only waits to be noticed."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class AgentProcess:
    """Started by `start`; everything it printed is in `log`."""

    def __init__(self, folder: Path, service: StandInService) -> None:
        self.folder, self.service = folder, service
        self.plan = folder / "plan.json"
        self._output = folder / "agent.log"
        self._process: asyncio.subprocess.Process | None = None

    async def start(
        self, plan: dict[str, Any] | None = None, wrapper: list[str] | None = None, **settings: Any
    ) -> None:
        """With scripted children; `wrapper` is a command that runs the agent's."""
        self.plan.write_text(json.dumps(plan or {}))
        child = [sys.executable, str(HERE / "scripted_child.py")]
        config = {
            "settings": {**self.settings(), **settings},
            "preparer": [*child, "preparer", str(self.plan)],
            "engine": [*child, "engine", str(self.plan)],
        }
        path = self.folder / "config.json"
        path.write_text(json.dumps(config))
        await self._launch([str(HERE / "agent_process.py"), str(path)], {}, wrapper)

    async def start_real(self, base: Path, fingerprint: str, **settings: Any) -> None:
        """With the children it has in production, and its settings from the environment."""
        values = {**self.settings(), "base_source": str(base), "base_fingerprint": fingerprint, **settings}
        await self._launch(["-m", "trainer"], {f"WEFT_TRAINER_{key.upper()}": str(v) for key, v in values.items()})

    def settings(self) -> dict[str, Any]:
        return {
            "service_url": self.service.url,
            "worker_token": TOKEN,
            "base_model": "weft-tiny",
            "base_source": "none",
            "base_fingerprint": FINGERPRINT,
            "work_dir": str(self.folder / "work"),
            "report_seconds": 0.05,
            "claim_wait_seconds": 2.0,
            "stop_seconds": 8.0,
        }

    async def _launch(self, argv: list[str], environment: dict[str, str], wrapper: list[str] | None = None) -> None:
        with self._output.open("ab") as output:
            command = [*(wrapper or []), sys.executable, *argv]
            self._process = await asyncio.create_subprocess_exec(
                *command, stdout=output, stderr=output, cwd="/", env={**os.environ, **environment}
            )

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    @property
    def log(self) -> str:
        return self._output.read_text()

    def told(self, what: str) -> list[dict[str, Any]]:
        """What scripted children were told or did, in order."""
        path = self.plan.with_suffix(".told")
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [line for line in lines if line["what"] == what]

    def children(self) -> list[int]:
        path = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return [int(pid) for pid in path.read_text().split()] if path.exists() else []

    def engines_of(self, job: str) -> list[int]:
        """The engine process of each of its starts, in order."""
        return [start["pid"] for start in self.told("start") if start["job"] == job]

    def child(self, word: str) -> int:
        """The child one of whose arguments is `word`."""
        commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in self.children()}
        return next(pid for pid, command in commands.items() if word.encode() in command)

    def peak_mib(self) -> float:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    async def ended(self, seconds: float = 15.0) -> int:
        assert self._process
        async with asyncio.timeout(seconds):
            return await self._process.wait()

    async def close(self) -> None:
        if self._process and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


def queue_job(service: StandInService, name: str = "one", lines: bytes = LINES, **settings: Any) -> Job:
    return service.add_job(job_spec(name, FINGERPRINT, None, **settings), lines)


def job_spec(name: str, fingerprint: str, template: str | None, **settings: object) -> JobSpec:
    """A small job. `settings` replace hyperparameters; `seed` and `examples` belong to the spec."""
    hyperparameters = {
        "n_epochs": 2,
        "batch_size": 2,
        "learning_rate_multiplier": 1.0,
        "learning_rate": 1e-3,
        "lora_rank": 8,
        "lora_alpha": 16.0,
        "warmup_ratio": 0.0,
        "lr_scheduler": "linear",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "max_seq_length": 128,
        **settings,
    }
    return JobSpec(
        job_id=f"ftjob-{name}",
        project_id="proj_test",
        base_model="weft-tiny",
        base_fingerprint=fingerprint,
        chat_template_sha256=template,
        seed=7,
        examples=8,
        hyperparameters=Hyperparameters.model_validate(hyperparameters),
        rules={},
    )
