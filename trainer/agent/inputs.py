"""From a lease to what the engine starts with: files fetched, verified and tokenised, the checkpoint if it is good, and
the adapter that the job begins with.

Owns the job's folder up to the Start message.
"""

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import aiohttp

from service.contracts.job import FileRef
from service.contracts.manifest import ManifestFile
from service.contracts.worker import AdapterRef, CheckpointRef, Lease
from trainer.agent.endings import WorkerUnfit, disk_full, job_error, no_space
from trainer.agent.preparer import FileRejected, PreparerDied, PreparerHopeless, PreparerHost
from trainer.agent.reporter import Reporter
from trainer.protocol import Prepare, Prepared
from trainer.transfer import Corrupt, ObjectGone, StoreAway, UrlRefused, download

log = logging.getLogger(__name__)

Role = Literal["training", "validation"]
FETCH_PATIENCE_SECONDS = 120.0
PREPARE_TRIES = 2


@dataclass(frozen=True)
class Inputs:
    training_dir: Path
    validation_dir: Path | None
    checkpoint_dir: Path | None
    adapter_dir: Path | None


class InputGatherer:
    """Raises JobError for what the job's owner must mend, WorkerUnfit for what passes, OSError for the local disk."""

    def __init__(
        self, lease: Lease, folder: Path, store: aiohttp.ClientSession, preparer: PreparerHost, reporter: Reporter
    ) -> None:
        self._lease, self._folder = lease, folder
        self._store, self._preparer, self._reporter = store, preparer, reporter

    async def gather(self) -> Inputs:
        await self._check_template()
        training, validation, checkpoint, adapter = await _together(
            self._prepared("training", self._lease.training_file),
            self._prepared("validation", self._lease.validation_file),
            self._checkpoint(self._lease.checkpoint),
            self._adapter(self._lease.start_adapter),
        )
        assert training is not None
        return Inputs(training, validation, checkpoint, adapter)

    async def _check_template(self) -> None:
        try:
            await self._preparer.wait_ready()
        except PreparerHopeless as error:
            raise WorkerUnfit(str(error)) from error
        if self._preparer.chat_template_sha256 != self._lease.spec.chat_template_sha256:
            log.error("the base's chat template is not the one the service knows; jobs would learn other prompts")
            raise WorkerUnfit(
                "This worker's base model has another chat template than the job was made for. "
                "An operator must give service and worker the same base; the job waits for a worker that has it."
            )

    async def _prepared(self, role: Role, source: FileRef | None) -> Path | None:
        if source is None:
            return None
        path = self._folder / f"{role}.jsonl"
        await self._fetch_file(role, source, path)
        target = self._folder / role
        command = Prepare(
            job_id=self._lease.spec.job_id,
            role=role,
            method=self._lease.spec.method,
            path=str(path),
            out_dir=str(target),
            max_seq_length=self._lease.spec.hyperparameters.max_seq_length,
        )
        counts = await self._prepare(command, source.size)
        path.unlink()
        self._tell(counts)
        return target

    async def _fetch_file(self, role: Role, source: FileRef, path: Path) -> None:
        expected = ManifestFile(path=path.name, sha256=source.sha256, size=source.size)
        param = f"{role}_file"
        try:
            await download(self._store, source.url, expected, path, FETCH_PATIENCE_SECONDS)
        except Corrupt as error:
            message = f"The {role} file in storage is damaged: {error}. Upload it again and create a new job."
            raise job_error("file_corrupt", message, param) from error
        except ObjectGone as error:
            message = f"The {role} file is no longer in storage. Upload it again and create a new job."
            raise job_error("file_missing", message, param) from error
        except (StoreAway, UrlRefused) as error:
            raise WorkerUnfit(f"The {role} file could not be fetched from storage ({error}).") from error

    async def _prepare(self, command: Prepare, size: int) -> Prepared:
        for _ in range(PREPARE_TRIES):
            try:
                return await self._preparer.prepare(command, size)
            except FileRejected as error:
                if not error.failure.code.startswith("invalid_") and disk_full(self._folder):
                    raise no_space() from error
                raise job_error(error.failure.code, error.failure.message, error.failure.param) from error
            except PreparerHopeless as error:
                raise WorkerUnfit(str(error)) from error
            except PreparerDied as error:
                log.warning("job %s: the preparer ended over the %s file: %s", command.job_id, command.role, error)
        param = f"{command.role}_file"
        message = (
            f"Reading the {command.role} file ended the process that reads it, {PREPARE_TRIES} times. "
            "Check the file for very long or deeply nested lines, then upload it again."
        )
        raise job_error("invalid_training_file" if command.role == "training" else f"invalid_{param}", message, param)

    def _tell(self, counts: Prepared) -> None:
        text = f"Read the {counts.role} file: {counts.examples} examples, {counts.tokens} tokens"
        cut = f"; {counts.truncated} examples were cut at max_seq_length" if counts.truncated else ""
        numbers = counts.model_dump(include={"examples", "tokens", "trained_tokens", "truncated"})
        self._reporter.note(f"{text}{cut}.", "warn" if counts.truncated else "info", **numbers)

    async def _checkpoint(self, checkpoint: CheckpointRef | None) -> Path | None:
        """Its folder, or None where it is damaged: losing progress is better than losing the job."""
        if checkpoint is None:
            return None
        target = self._folder / f"from-step-{checkpoint.manifest.step}"
        target.mkdir()
        try:
            for file in checkpoint.manifest.files:
                url = checkpoint.urls[file.path]
                await download(self._store, url, file, target / file.path, FETCH_PATIENCE_SECONDS)
        except (Corrupt, ObjectGone, KeyError) as error:
            log.warning("job %s: checkpoint unusable: %s", self._lease.spec.job_id, type(error).__name__)
            step = checkpoint.manifest.step
            self._reporter.note(
                f"The checkpoint of step {step} is damaged or gone; training starts again from step 0.",
                "warn",
                code="checkpoint_corrupt",
                step=step,
            )
            self._reporter.counts(0, 0)
            return None
        except (StoreAway, UrlRefused) as error:
            raise WorkerUnfit(f"The checkpoint could not be fetched from storage ({error}).") from error
        return target

    async def _adapter(self, start: AdapterRef | None) -> Path | None:
        """What the job begins with. Without it the job would be another one, so its damage is the job's end."""
        if start is None:
            return None
        target = self._folder / "start-adapter"
        target.mkdir()
        try:
            for file in start.manifest.files:
                await download(self._store, start.urls[file.path], file, target / file.path, FETCH_PATIENCE_SECONDS)
        except (Corrupt, ObjectGone, KeyError) as error:
            message = (
                "The model that the job goes on from is damaged or gone. Train from another model or a base model."
            )
            raise job_error("start_model_corrupt", message, "model") from error
        except (StoreAway, UrlRefused) as error:
            raise WorkerUnfit(f"The adapter to begin with could not be fetched from storage ({error}).") from error
        return target


async def _together(*works: Coroutine[Any, Any, Path | None]) -> list[Path | None]:
    """All results; the first error ends the other works before it is raised."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
