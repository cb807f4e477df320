"""One step of the resident jobs together: who takes part, a pass of their rows, the optimizer where batches are whole.

Owns the order of a step. What a job does with its outcome is `runner`'s, who takes part is `scheduler`'s.
"""

from collections.abc import Callable, Sequence

from trainer.engine.adapter import Outcome, Work
from trainer.engine.engine import Engine
from trainer.engine.runner import JobRunner
from trainer.engine.scheduler import Scheduler

Guard = Callable[[JobRunner, Callable[[], None]], object]
"""Runs a job's own work; an exception of it ends that job and not the step."""


def step(engine: Engine, scheduler: Scheduler[JobRunner], runners: Sequence[JobRunner], guard: Guard) -> None:
    """Each of the scheduler's choice goes on by one piece of its batch, or of its validation."""
    for runner in runners:
        guard(runner, runner.prepare)
    chosen = scheduler.choose([runner for runner in runners if not runner.finished])
    training = [runner for runner in chosen if not runner.validating]
    validating = [runner for runner in chosen if runner.validating]
    _hand_out(engine.evaluate, validating, guard)
    _hand_out(engine.forward_backward, training, guard)
    due = [runner for runner in training if runner.due and not runner.finished]
    norms = engine.optim_step([(runner.adapter, runner.adam()) for runner in due])
    for runner, norm in zip(due, norms, strict=True):
        guard(runner, lambda runner=runner, norm=norm: runner.stepped(norm))


def _hand_out(run: Callable[[Sequence[Work]], list[Outcome]], runners: Sequence[JobRunner], guard: Guard) -> None:
    for runner, outcome in zip(runners, run([runner.work for runner in runners]), strict=True):
        guard(runner, lambda runner=runner, outcome=outcome: runner.took(outcome))
