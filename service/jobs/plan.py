"""What a job would be: everything that a trainer could stumble over is refused here, before any GPU time is spent.

Creating, estimating and importing all begin with a draft, which becomes a plan once the files are known; none of it
changes anything.
"""

from dataclasses import dataclass

from service.contracts.base_model import BaseModelInfo
from service.contracts.ids import JobId, new_job_id
from service.contracts.job import JobSpec, Method
from service.db import TenantSession
from service.errors import InvalidRequest
from service.files.models import FileRow
from service.jobs import datafiles, pace
from service.jobs.draft import INHERITED, Draft, drafted
from service.jobs.models import PaceRow
from service.jobs.resolve import Dataset, Resolved, resolve
from service.jobs.schemas import CreateJob
from service.resources import Resources


@dataclass(frozen=True)
class Sources:
    """A job's files by the parameters that name them."""

    training: FileRow
    validation: FileRow | None = None
    held_out: FileRow | None = None

    def named(self) -> list[tuple[str, FileRow]]:
        pairs = (
            ("training_file", self.training),
            ("validation_file", self.validation),
            ("on_success.evaluation.file_id", self.held_out),
        )
        return [(name, file) for name, file in pairs if file is not None]

    def being_processed(self) -> bool:
        return any(datafiles.being_processed(file) for _, file in self.named())

    def require_fit(self, method: Method) -> None:
        """Raises InvalidRequest for what can be said against them by now. Held out may be examples of any format."""
        for name, file in self.named():
            datafiles.require_fit(file, name, None if file is self.held_out else method)


@dataclass(frozen=True)
class Plan:
    spec: JobSpec
    base: BaseModelInfo
    draft: Draft
    training: FileRow
    validation: FileRow | None
    pace: PaceRow | None
    expected_tokens: int


async def plan(session: TenantSession, resources: Resources, request: CreateJob) -> Plan:
    """Raises InvalidRequest and ModelNotFound. The files and the model are held until the transaction ends."""
    origin, draft = await drafted(session, resources, request)
    sources = await sources_of(session, request, draft.method)
    for name, file in sources.named():
        datafiles.require_processed(file, name)
    return await completed(session, resources, new_job_id(), draft, origin.base, sources)


async def sources_of(session: TenantSession, request: CreateJob, method: Method) -> Sources:
    """Raises InvalidRequest where a file is missing or unfit; one that is still processed may prove so later."""
    training = await datafiles.found(session, request.training_file, "training_file")
    validation = held_out = None
    if request.validation_file is not None:
        validation = await datafiles.found(session, request.validation_file, "validation_file")
    if request.on_success is not None and request.on_success.evaluation.file_id is not None:
        place = "on_success.evaluation.file_id"
        held_out = await datafiles.found(session, request.on_success.evaluation.file_id, place)
    sources = Sources(training, validation, held_out)
    sources.require_fit(method)
    return sources


async def completed(
    session: TenantSession, resources: Resources, job_id: JobId, draft: Draft, base: BaseModelInfo, sources: Sources
) -> Plan:
    """The plan over files that are all processed. Raises InvalidRequest."""
    sources.require_fit(draft.method)
    training, validation = sources.training, sources.validation
    _refuse_few_examples(training, resources.settings.min_examples)
    dataset = Dataset(training.examples, training.bytes, validated=validation is not None)
    resolved = resolved_of(draft, base, dataset, resources.settings.max_lora_rank)
    spec = JobSpec(
        job_id=job_id,
        project_id=session.project_id,
        base_model=base.name,
        base_fingerprint=draft.base_fingerprint,
        chat_template_sha256=draft.chat_template_sha256,
        method=draft.method,
        seed=draft.seed,
        examples=dataset.examples,
        hyperparameters=resolved.hyperparameters,
        rules=resolved.rules,
        start_from=draft.start_from,
    )
    known = await pace.known(session, base.name, draft.base_fingerprint)
    tokens = pace.expected_tokens(known, training.bytes, spec.hyperparameters.n_epochs)
    return Plan(spec, base, draft, training, validation, known, tokens)


def resolved_of(draft: Draft, base: BaseModelInfo, dataset: Dataset, max_rank: int) -> Resolved:
    """Raises InvalidRequest where what was asked for does not go together."""
    resolved = resolve(draft.hyperparameters, base, dataset, draft.method, max_rank)
    if draft.start_model is None:
        return resolved
    rule = f"inherited from {draft.start_model}"
    return Resolved(resolved.hyperparameters, resolved.rules | dict.fromkeys(INHERITED, rule))


def _refuse_few_examples(file: FileRow, least: int) -> None:
    if file.examples < least:
        raise InvalidRequest(
            f"Training file has {file.examples} example(s), but must have at least {least} examples",
            code="invalid_n_examples",
            param="training_file",
        )
