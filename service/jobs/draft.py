"""What a job is to be, as far as that follows from its request: everything but what its files decide.

It is stored with a job that waits for its files, and `plan` makes a JobSpec of it.
"""

import secrets
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from service.adapters import destination, registry
from service.contracts.base_model import BaseModelInfo
from service.contracts.job import Method, StartFrom
from service.db import TenantSession
from service.errors import InvalidRequest, ModelNotFound
from service.jobs import gates
from service.jobs.schemas import CreateJob, MethodSettings, RequestedHyperparameters, RequestedMethod
from service.resources import Resources


class Draft(BaseModel):
    """`hyperparameters` are as they were asked for. `start_model` is the name that goes with `start_from`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_fingerprint: str
    chat_template_sha256: str | None
    method: Method
    seed: int
    hyperparameters: RequestedHyperparameters
    start_from: StartFrom | None = None
    start_model: str | None = None


@dataclass(frozen=True)
class Origin:
    """What a job begins at: a base, and perhaps one of the project's own models of it."""

    base: BaseModelInfo
    model: registry.Model | None = None


async def drafted(session: TenantSession, resources: Resources, request: CreateJob) -> tuple[Origin, Draft]:
    """Raises InvalidRequest and ModelNotFound. The model is held until the transaction ends."""
    origin = await _origin(session, resources, request.model)
    if request.destination is not None:
        await destination.check(session, resources, session.project_id, request.destination, origin.base.name)
    await gates.check(session, resources, request)
    method, requested = _requested(request)
    if request.validation_file == request.training_file:
        raise InvalidRequest(
            "The training and validation file are the same; give different files.", param="validation_file"
        )
    return origin, Draft(
        base_fingerprint=origin.base.fingerprint,
        chat_template_sha256=origin.base.chat_template_sha256,
        method=method,
        seed=secrets.randbelow(2**31) if request.seed is None else request.seed,
        hyperparameters=_inheriting(requested, origin.model) if origin.model else requested,
        start_from=_start_from(origin.model) if origin.model else None,
        start_model=origin.model.name if origin.model else None,
    )


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


INHERITED = ("lora_rank", "lora_alpha", "target_modules")
"""What a job that goes on from a model keeps of it: its weights have no other shape."""


def _inheriting(requested: RequestedHyperparameters, model: registry.Model) -> RequestedHyperparameters:
    """Raises InvalidRequest where something else was asked for."""
    manifest = model.manifest
    values = (manifest.rank, manifest.alpha, tuple(sorted(manifest.target_modules)))
    inherited: dict[str, object] = dict(zip(INHERITED, values, strict=True))
    for name, value in inherited.items():
        given = getattr(requested, name)
        if isinstance(given, tuple):
            given = tuple(sorted(given))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        if given is not None and given != value:
            raise InvalidRequest(
                f"'{name}' is {given!r}, but '{model.name}' has {value!r}, which a job that goes on from it "
                "keeps; leave it out.",
                code="adapter_mismatch",
                param=name,
            )
    return requested.model_copy(update=inherited)


def _start_from(model: registry.Model) -> StartFrom:
    manifest = model.manifest
    return StartFrom(
        adapter_id=model.adapter_id, rank=manifest.rank, alpha=manifest.alpha, target_modules=manifest.target_modules
    )
