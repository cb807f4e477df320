"""What a job is to do on its success: everything that could only fail once the training is paid for is refused here."""

from service.adapters import registry
from service.adapters.aliases import is_alias
from service.adapters.removal import not_found
from service.db import TenantSession
from service.errors import InvalidRequest
from service.jobs.graders import Grader, Loss, OnSuccess, ScoreModel
from service.jobs.schemas import CreateJob
from service.resources import Resources

PARAM = "on_success"


async def check(session: TenantSession, resources: Resources, request: CreateJob) -> None:
    """Raises InvalidRequest. Whether the held-out file can be used is for `plan` to say, as of the other files."""
    gate = request.on_success
    if gate is None:
        return
    if request.destination is None:
        raise _refused("needs the adapter whose version the model becomes: give 'adapter'", "adapter")
    if gate.adapter not in (None, request.destination):
        raise _refused(f"names adapter '{gate.adapter}', the job names '{request.destination}'", "adapter")
    if not is_alias(gate.alias):
        raise _refused(f"cannot promote '{gate.alias}', which is no alias of an adapter", "alias")
    if isinstance(gate.evaluation.grader, Loss) and gate.min_score is not None:
        raise _refused("takes no 'min_score' with the grader 'loss', of which less is better", "min_score")
    await check_grader(session, resources, gate.evaluation.grader, f"{PARAM}.evaluation.grader")
    _check_file(request, gate)


async def check_grader(session: TenantSession, resources: Resources, grader: Grader, param: str) -> None:
    """Raises ModelNotFound where it asks a model that the project cannot use."""
    if not isinstance(grader, ScoreModel) or resources.base_model(grader.model) is not None:
        return
    if await registry.find(session, session.project_id, grader.model) is None:
        problem = not_found(grader.model)
        problem.param = f"{param}.model"
        raise problem


def _check_file(request: CreateJob, gate: OnSuccess) -> None:
    held_out = gate.evaluation.file_id
    if held_out is None and request.validation_file is None:
        raise _refused("needs examples to judge by: give 'validation_file', or the held-out file", "evaluation.file_id")
    if held_out == request.training_file:
        raise _refused("cannot judge by the training file; give examples that were held out", "evaluation.file_id")


def _refused(message: str, param: str) -> InvalidRequest:
    return InvalidRequest(f"'{PARAM}' {message}.", code="invalid_on_success", param=f"{PARAM}.{param}")
