"""One step of the resident jobs together: who takes part, a pass of their rows, the optimizer where batches are whole.

Owns the order of a step, and tells each job what part it had in it. What a job does with its outcome is `runner`'s, who
takes part is `scheduler`'s.
"""

import time
from collections.abc import Callable, Sequence

from trainer.engine.adapter import Outcome
from trainer.engine.engine import Engine
from trainer.engine.runner import JobRunner
from trainer.engine.scheduler import Scheduler

Guard = Callable[[JobRunner, Callable[[], None]], object]
"""Runs a job's own work; an exception of it ends that job and not the step."""


def step(engine: Engine, scheduler: Scheduler[JobRunner], runners: Sequence[JobRunner], guard: Guard) -> None:
    """Each of the scheduler's choice goes on by one piece of its batch, or of its validation."""
    for runner in runners:
        guard(runner, runner.prepare)
    waiting = [runner for runner in runners if not runner.finished]
    chosen = scheduler.choose(waiting)
    training = [runner for runner in chosen if not runner.validating]
    validating = [runner for runner in chosen if runner.validating]
    for run, takers in ((engine.evaluate, validating), (engine.forward_backward, training)):
        started = time.monotonic()
        outcomes = run([runner.work for runner in takers])
        _account(waiting, takers, time.monotonic() - started)
        _hand_out(takers, outcomes, guard)
    due = [runner for runner in training if runner.due and not runner.finished]
    norms = engine.optim_step([(runner.adapter, runner.adam()) for runner in due])
    for runner, norm in zip(due, norms, strict=True):
        guard(runner, lambda runner=runner, norm=norm: runner.stepped(norm))


def _account(waiting: Sequence[JobRunner], takers: Sequence[JobRunner], seconds: float) -> None:
    together = sum(runner.cost for runner in takers)
    for runner in takers:
        runner.pace.took_part(runner.cost, together)
    apart = set(takers)
    for runner in waiting:
        if runner not in apart:
            runner.pace.waited(seconds)


def _hand_out(takers: Sequence[JobRunner], outcomes: Sequence[Outcome], guard: Guard) -> None:
    for runner, outcome in zip(takers, outcomes, strict=True):
        guard(runner, lambda runner=runner, outcome=outcome: runner.took(outcome))
