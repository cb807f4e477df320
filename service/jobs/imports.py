"""Jobs that ran at OpenAI, made again here: method, hyperparameters as they were resolved, suffix, seed, metadata.

What stays behind is said field by field. The learning rate multiplier is carried over as a multiplier of our own base
rates, since nobody outside OpenAI knows theirs.
"""

from dataclasses import dataclass
from typing import Any, cast

from pydantic import ValidationError

from service.errors import InvalidRequest
from service.jobs.schemas import CreateJob, ImportJob, LeftOut
from service.resources import Resources

CARRIED = {
    "supervised": ("n_epochs", "batch_size", "learning_rate_multiplier"),
    "dpo": ("n_epochs", "batch_size", "learning_rate_multiplier", "beta"),
}
STAYS = {
    "fine_tuned_model": "its weights stay at OpenAI; the new job trains a model of its own",
    "result_files": "they lie at OpenAI; the new job writes its own",
    "eval_id": "evaluations at OpenAI are not part of a job here",
}


@dataclass(frozen=True)
class Recreated:
    request: CreateJob
    left_out: list[LeftOut]


def recreate(resources: Resources, imported: ImportJob) -> Recreated:
    """Raises InvalidRequest where the object is no job, or one that this service cannot train."""
    job = imported.job
    if job.get("object") != "fine_tuning.job":
        raise InvalidRequest("'job' is no job object: 'object' must be 'fine_tuning.job'.", param="job")
    left_out = [LeftOut(field=name, reason=reason) for name, reason in STAYS.items() if job.get(name)]
    body: dict[str, Any] = {
        "model": _model(resources, imported, left_out),
        "training_file": imported.training_file,
        "validation_file": imported.validation_file,
        "method": _method(job, left_out),
        "suffix": _suffix(job, left_out),
        "seed": job.get("seed"),
        "metadata": job.get("metadata"),
        "integrations": _integrations(job),
    }
    if job.get("validation_file") and imported.validation_file is None:
        reason = "upload the file here and give its id as 'validation_file'"
        left_out.append(LeftOut(field="validation_file", reason=reason))
    try:
        return Recreated(CreateJob.model_validate(body), left_out)
    except ValidationError as error:
        raise _unusable(error) from None


def _model(resources: Resources, imported: ImportJob, left_out: list[LeftOut]) -> str:
    name = _text(imported.job.get("model"))
    if name.startswith("ft:"):
        reason = f"the job went on from {name}, whose weights stay at OpenAI; the new one starts at the base"
        left_out.append(LeftOut(field="model", reason=reason))
        name = name.split(":")[1]
    if imported.model is not None:
        return imported.model
    known = resources.settings.imported_base_models
    fitting = [beginning for beginning in known if name.startswith(beginning)]
    if not fitting:
        raise InvalidRequest(
            f"This service has no base model that stands for '{name}'; give the one to train as 'model'.",
            code="missing_model",
            param="model",
        )
    return known[max(fitting, key=len)]


def _method(job: dict[str, Any], left_out: list[LeftOut]) -> dict[str, Any]:
    method = _mapping(job.get("method"))
    kind = _text(method.get("type") or "supervised")
    if kind not in CARRIED:
        raise InvalidRequest(
            f"The job was trained with method '{kind}'; this service trains with 'supervised' or 'dpo'.",
            code="unsupported_method",
            param="job.method",
        )
    given = _mapping(job.get("hyperparameters")) | _mapping(_mapping(method.get(kind)).get("hyperparameters"))
    known = {name: given[name] for name in CARRIED[kind] if given.get(name) is not None}
    for name in given.keys() - known.keys():
        if given[name] is not None:
            left_out.append(LeftOut(field=f"hyperparameters.{name}"[:128], reason="this service has no such setting"))
    return {"type": kind, kind: {"hyperparameters": known}}


def _suffix(job: dict[str, Any], left_out: list[LeftOut]) -> str | None:
    named = _text(job.get("fine_tuned_model")).split(":")
    suffix = job.get("user_provided_suffix") or (named[3] if len(named) == 5 else None)
    if not suffix:
        return None
    try:
        CreateJob.model_validate({"model": "m", "training_file": "f", "suffix": suffix})
    except ValidationError:
        reason = "a suffix is a text of 1 to 64 characters"
        left_out.append(LeftOut(field="suffix", reason=reason))
        return None
    return suffix


def _integrations(job: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Without their runs, which are OpenAI's."""
    given = job.get("integrations")
    found: list[dict[str, Any]] = []
    for each in cast("list[object]", given) if isinstance(given, list) else []:
        settings = _mapping(_mapping(each).get("wandb"))
        settings.pop("run_id", None)
        found.append({"type": _mapping(each).get("type"), "wandb": settings})
    return found or None


def _mapping(value: object) -> dict[str, Any]:
    return dict(cast("dict[str, Any]", value)) if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _unusable(error: ValidationError) -> InvalidRequest:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(("job", *(str(part) for part in first["loc"])))
    return InvalidRequest(f"Invalid '{place}': {first['msg'].removeprefix('Value error, ')}.", param=place)
