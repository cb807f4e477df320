"""`weft jobs`: training, from the question what it would take to the finished model."""

from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from weft.cli.commands import PAGE, Group, Session, duration, listing, session_of
from weft.cli.graders import HELP, grader_of
from weft.cli.output import Column, moment, plain, show_item, show_items, show_json

if TYPE_CHECKING:
    from weft.types import FineTuningJob

COLUMNS = (
    Column("ID", lambda job: job.id),
    Column("STATUS", lambda job: job.status),
    Column("BASE", lambda job: job.model),
    Column("MODEL", lambda job: job.fine_tuned_model),
    Column("CREATED", lambda job: moment(job.created_at)),
)
DETAILS = (
    Column("ID", lambda job: job.id),
    Column("STATUS", lambda job: job.status),
    Column("PHASE", lambda job: job.phase),
    Column("QUEUE POSITION", lambda job: job.queue_position),
    Column("BLOCKED BY", lambda job: job.blocked_by),
    Column("BASE", lambda job: job.model),
    Column("MODEL", lambda job: job.fine_tuned_model),
    Column("ADAPTER", lambda job: job.adapter),
    Column("PROMOTES TO", lambda job: job.on_success and job.on_success.alias),
    Column("ERROR", lambda job: job.error.message if job.error and job.error.message else None),
    Column("TRAINING FILE", lambda job: job.training_file),
    Column("VALIDATION FILE", lambda job: job.validation_file),
    Column("TRAINED TOKENS", lambda job: job.trained_tokens),
    Column("SEED", lambda job: job.seed),
    Column("CREATED", lambda job: moment(job.created_at)),
    Column("FINISHED", lambda job: moment(job.finished_at)),
)
ESTIMATE = (
    Column("MODEL", lambda found: found.model),
    Column("TOKENS", lambda found: found.tokens),
    Column("TRAINED TOKENS", lambda found: found.trained_tokens),
    Column("STEPS", lambda found: found.steps),
    Column("COST", lambda found: f"{found.cost.amount:.4f} {found.cost.currency.upper()}"),
    Column("SECONDS", lambda found: found.seconds and f"{found.seconds.low:.0f} to {found.seconds.high:.0f}"),
    Column("WARNINGS", lambda found: "; ".join(found.warnings)),
)
CHECKPOINTS = (
    Column("ID", lambda found: found.id),
    Column("STEP", lambda found: found.step_number),
    Column("MODEL", lambda found: found.fine_tuned_model_checkpoint),
    Column("LOSS", lambda found: found.metrics.train_loss),
    Column("VALIDATION LOSS", lambda found: found.metrics.full_valid_loss),
    Column("CREATED", lambda found: moment(found.created_at)),
)
EVENTS = (
    Column("TIME", lambda event: moment(event.created_at)),
    Column("LEVEL", lambda event: event.level),
    Column("MESSAGE", lambda event: event.message),
)

GATES = ("grader", "judge_by", "min_score", "even_if_worse")


@click.group(cls=Group)
def jobs() -> None:
    """Train models and watch them learn."""


def described(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say what a job is; `create` and `estimate` have the same."""
    for option in (
        click.option("--seed", type=int, help="Of the order of examples and the adapter's beginning."),
        click.option("--adapter", metavar="NAME", help="The registered adapter whose next version it becomes."),
        click.option("--suffix", help="In the model's name."),
        click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Any other hyperparameter."),
        click.option("--rank", type=int, help="Of the adapter."),
        click.option("--learning-rate", type=float),
        click.option("--batch-size", type=int),
        click.option("--epochs", type=int),
        click.option("--method", default="supervised", show_default=True, type=click.Choice(("supervised", "dpo"))),
        click.option("--validation-file", metavar="FILE", help="A file's id, or a path to upload."),
        click.option("--training-file", metavar="FILE", required=True, help="A file's id, or a path to upload."),
        click.option("--model", required=True, help="A base model, or what to go on from."),
    ):
        command = option(command)
    return command


def promoting(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say what becomes of the model."""
    for option in (
        click.option("--even-if-worse", is_flag=True, help="Than what ALIAS stands for: promote it all the same."),
        click.option("--min-score", type=float, help="Promote nothing below it."),
        click.option("--judge-by", metavar="FILE", help="Held-out examples.  [default: the validation file]"),
        click.option("--grader", type=grader_of, metavar="GRADER", help=f"{HELP}  [default: loss]"),
        click.option("--promote", metavar="NAME@ALIAS", help="Point this at the model if it proves better."),
    ):
        command = option(command)
    return command


@jobs.command()
@described
@promoting
@click.option("--watch", is_flag=True, help="Show how it learns until it ends.")
@session_of
def create(session: Session, watch: bool, **options: Any) -> int | None:
    """Train a model.

    With --promote it is evaluated at the end, and an alias is pointed at it where it beats the version that the alias
    stands for then.
    """
    from weft.cli.requests import job_request

    if options["promote"] is None and any(options[name] for name in GATES):
        raise click.UsageError("--grader, --judge-by, --min-score and --even-if-worse need --promote")
    job = session.client.fine_tuning.jobs.create(**job_request(session, options))
    if watch:
        return _watch(session, job.id, None)
    return show_item(session, job, DETAILS)


@jobs.command()
@described
@session_of
def estimate(session: Session, **options: Any) -> None:
    """Tell what a job would take, without making it."""
    from weft.cli.requests import job_request

    request = job_request(session, options)
    show_item(session, session.client.fine_tuning.estimates.create(**request), ESTIMATE)


@jobs.command("list")
@listing
@session_of
def list_jobs(session: Session, limit: int) -> None:
    """List the newest jobs."""
    show_items(session, session.client.fine_tuning.jobs.list(limit=min(limit + 1, PAGE)), COLUMNS, limit)


@jobs.command()
@click.argument("job_id")
@session_of
def show(session: Session, job_id: str) -> None:
    """Show the job JOB_ID."""
    show_item(session, session.client.fine_tuning.jobs.retrieve(job_id), DETAILS)


@jobs.command()
@click.argument("job_id")
@click.option("--timeout", type=duration, help="How long to wait, such as 2h; then the exit status is 124.")
@session_of
def watch(session: Session, job_id: str, timeout: int | None) -> int:
    """Show how JOB_ID learns until it ends. The exit status is 0 if it has succeeded, else 1."""
    return _watch(session, job_id, timeout)


@jobs.command()
@click.argument("job_id")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job ends.")
@listing
@session_of
def events(session: Session, job_id: str, follow: bool, limit: int) -> None:
    """Show what has happened to JOB_ID, oldest first."""
    if follow:
        from weft.cli.watching import told

        session.client.fine_tuning.jobs.wait(job_id, on_event=lambda event: told(session, event))
        return
    newest = session.client.fine_tuning.jobs.list_events(job_id, limit=min(limit, PAGE))
    found = list(islice(newest, limit))[::-1]
    if session.json:
        show_json([plain(event) for event in found])
    else:
        show_items(session, found, EVENTS)


@jobs.command()
@click.argument("job_id")
@session_of
def checkpoints(session: Session, job_id: str) -> None:
    """List the models of JOB_ID that can be used before it ends."""
    show_items(session, session.client.fine_tuning.jobs.checkpoints.list(job_id), CHECKPOINTS)


def _told(verb: str, said: str) -> None:
    """A command that tells a job something."""

    @jobs.command(verb, help=said)
    @click.argument("job_id")
    @session_of
    def _(session: Session, job_id: str) -> None:
        tell: Callable[[str], FineTuningJob] = getattr(session.client.fine_tuning.jobs, verb)
        show_item(session, tell(job_id), DETAILS)


_told("cancel", "End JOB_ID. It cannot be undone.")
_told("pause", "Let JOB_ID keep its place and give its machine away.")
_told("resume", "Let JOB_ID go on where it was.")


def _watch(session: Session, job_id: str, timeout: int | None) -> int:
    from weft.cli.watching import watched

    return watched(session, job_id, timeout)
