"""What a job would be: everything that a trainer could stumble over is refused here, before any GPU time is spent.

Creating, estimating and importing all begin with a plan; none of it changes anything.
"""

import secrets
from dataclasses import dataclass

from service.adapters import destination, registry
from service.contracts.base_model import BaseModelInfo
from service.contracts.ids import new_job_id
from service.contracts.job import JobSpec, Method, StartFrom
from service.db import TenantSession
from service.errors import InvalidRequest, ModelNotFound
from service.files.models import FileRow
from service.jobs import gates, pace
from service.jobs.datafiles import usable
from service.jobs.models import PaceRow
from service.jobs.resolve import Dataset, Resolved, resolve
from service.jobs.schemas import CreateJob, MethodSettings, RequestedHyperparameters, RequestedMethod
from service.resources import Resources


@dataclass(frozen=True)
class Origin:
    """What a job begins at: a base, and perhaps one of the project's own models of it."""

    base: BaseModelInfo
    model: registry.Model | None = None


@dataclass(frozen=True)
class Plan:
    spec: JobSpec
    origin: Origin
    training: FileRow
    validation: FileRow | None
    pace: PaceRow | None
    expected_tokens: int


async def plan(session: TenantSession, resources: Resources, request: CreateJob) -> Plan:
    """Raises InvalidRequest and ModelNotFound. The files and the model are held until the transaction ends."""
    origin = await _origin(session, resources, request.model)
    if request.destination is not None:
        await destination.check(session, resources, session.project_id, request.destination, origin.base.name)
    await gates.check(session, resources, request)
    method, requested = _requested(request)
    if request.validation_file == request.training_file:
        raise InvalidRequest(
            "The training and validation file are the same; give different files.", param="validation_file"
        )
    training = await usable(session, request.training_file, "training_file", method)
    _refuse_few_examples(training, resources.settings.min_examples)
    validation = None
    if request.validation_file is not None:
        validation = await usable(session, request.validation_file, "validation_file", method)
    dataset = Dataset(training.examples, training.bytes, validated=validation is not None)
    resolved = _resolved(requested, origin, dataset, method, resources.settings.max_lora_rank)
    spec = _spec(session, request, origin, method, dataset, resolved)
    known = await pace.known(session, origin.base.name, origin.base.fingerprint)
    tokens = pace.expected_tokens(known, training.bytes, spec.hyperparameters.n_epochs)
    return Plan(spec, origin, training, validation, known, tokens)


async def _origin(session: TenantSession, resources: Resources, name: str) -> Origin:
    base = resources.base_model(name)
    if base is not None:
        return Origin(base)
    model = await registry.find(session, session.project_id, name)
    if model is not None and model.project_id != session.project_id:
        raise InvalidRequest(
            f"The model '{name}' belongs to another project, which shares it for use and not for further training.",
            code="model_not_trainable",
            param="model",
        )
    if model is not None and await registry.hold(session, model):
        return Origin(_base_of(resources, model), model)
    offered = ", ".join(sorted(known.name for known in resources.settings.base_models))
    raise ModelNotFound(
        f"The model '{name}' does not exist or cannot be fine-tuned. Models that can be: {offered}, "
        "and fine-tuned models of this project.",
        param="model",
    )


def _base_of(resources: Resources, model: registry.Model) -> BaseModelInfo:
    manifest = model.manifest
    base = resources.base_model(manifest.base_model)
    same = base is not None and (manifest.base_fingerprint, manifest.chat_template_sha256) == (
        base.fingerprint,
        base.chat_template_sha256,
    )
    if base is None or not same:
        raise InvalidRequest(
            f"The model '{model.name}' was trained on another '{manifest.base_model}' than this service has now; "
            "train from a base model instead.",
            code="base_model_changed",
            param="model",
        )
    return base


def _resolved(
    requested: RequestedHyperparameters, origin: Origin, dataset: Dataset, method: Method, max_rank: int
) -> Resolved:
    """A job that goes on from a model keeps its rank, alpha and modules: its weights have no other shape."""
    if origin.model is None:
        return resolve(requested, origin.base, dataset, method, max_rank)
    manifest = origin.model.manifest
    inherited: dict[str, object] = {
        "lora_rank": manifest.rank,
        "lora_alpha": manifest.alpha,
        "target_modules": tuple(sorted(manifest.target_modules)),
    }
    for name, value in inherited.items():
        given = getattr(requested, name)
        if isinstance(given, tuple):
            given = tuple(sorted(given))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        if given is not None and given != value:
            raise InvalidRequest(
                f"'{name}' is {given!r}, but '{origin.model.name}' has {value!r}, which a job that goes on from it "
                "keeps; leave it out.",
                code="adapter_mismatch",
                param=name,
            )
    resolved = resolve(requested.model_copy(update=inherited), origin.base, dataset, method, max_rank)
    rule = f"inherited from {origin.model.name}"
    return Resolved(resolved.hyperparameters, resolved.rules | dict.fromkeys(inherited, rule))


def _requested(request: CreateJob) -> tuple[Method, RequestedHyperparameters]:
    """Method and wanted hyperparameters, where `method` goes before the deprecated top level field by field."""
    method = request.method or RequestedMethod(type="supervised")
    if method.type == "reinforcement" or method.reinforcement is not None:
        raise InvalidRequest(
            "This service trains with method 'supervised' or 'dpo'.", code="unsupported_method", param="method"
        )
    other = "dpo" if method.type == "supervised" else "supervised"
    if getattr(method, other) is not None:
        raise InvalidRequest(
            f"'method.type' is '{method.type}', but 'method.{other}' is given; give only one of both.",
            param=f"method.{other}",
        )
    settings: MethodSettings | None = getattr(method, method.type)
    old = request.hyperparameters or RequestedHyperparameters()
    new = settings.hyperparameters if settings else RequestedHyperparameters()
    return method.type, old.model_copy(update={name: getattr(new, name) for name in new.model_fields_set})


def _refuse_few_examples(file: FileRow, least: int) -> None:
    if file.examples < least:
        raise InvalidRequest(
            f"Training file has {file.examples} example(s), but must have at least {least} examples",
            code="invalid_n_examples",
            param="training_file",
        )


def _spec(
    session: TenantSession,
    request: CreateJob,
    origin: Origin,
    method: Method,
    dataset: Dataset,
    resolved: Resolved,
) -> JobSpec:
    return JobSpec(
        job_id=new_job_id(),
        project_id=session.project_id,
        base_model=origin.base.name,
        base_fingerprint=origin.base.fingerprint,
        chat_template_sha256=origin.base.chat_template_sha256,
        method=method,
        seed=secrets.randbelow(2**31) if request.seed is None else request.seed,
        examples=dataset.examples,
        hyperparameters=resolved.hyperparameters,
        rules=resolved.rules,
        start_from=_start_from(origin.model) if origin.model else None,
    )


def _start_from(model: registry.Model) -> StartFrom:
    manifest = model.manifest
    return StartFrom(
        adapter_id=model.adapter_id, rank=manifest.rank, alpha=manifest.alpha, target_modules=manifest.target_modules
    )
