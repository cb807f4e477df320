"""What the owner of a job is told when it fails. Owns codes and wording; who fails is decided elsewhere."""

from service.contracts.servable import Unservable
from service.contracts.worker import JobFailure
from trainer.engine.adapter import NonFinite, OutOfMemory
from trainer.engine.memory import TooLarge
from trainer.engine.wrap import UnknownTarget
from trainer.export import AdapterInvalid


def as_failure(
    error: Exception, step: int = 0, total_steps: int = 0, rate: float = 0.0, beta: float | None = None
) -> JobFailure:
    """What the job's owner is told, never with a word of their data."""
    if isinstance(error, NonFinite):
        and_beta = f" and a beta of {beta:.3g}" if beta is not None else ""
        return JobFailure(
            code="loss_diverged",
            message=f"The loss or its gradient stopped being a finite number at step {step + 1} of {total_steps}, "
            f"with a learning rate of {rate:.3g}{and_beta}. A lower learning_rate_multiplier may help.",
            param="hyperparameters.learning_rate_multiplier",
        )
    if isinstance(error, TooLarge):
        return JobFailure(
            code="out_of_memory",
            message=f"The job needs {_gib(error.needed)} of the trainer's memory by itself, and there are "
            f"{_gib(error.limit)} for jobs. A lower max_seq_length or lora_rank, or fewer target_modules, may help.",
            param="hyperparameters.max_seq_length",
        )
    if isinstance(error, OutOfMemory):
        return JobFailure(
            code="out_of_memory",
            message="The trainer's memory does not hold this job with a single example at a time. A lower "
            "max_seq_length or lora_rank may help.",
            param="hyperparameters.max_seq_length",
        )
    if isinstance(error, AdapterInvalid):
        return JobFailure(
            code="start_model_corrupt",
            message=f"The job cannot begin with the model that it goes on from: {error}. Train from another model.",
            param="model",
        )
    if isinstance(error, Unservable):
        return JobFailure(
            code="adapter_unservable",
            message=f"The adapter could not be served: {error}. "
            "A lower learning_rate_multiplier or lora_alpha may help.",
            param="hyperparameters",
        )
    if isinstance(error, UnknownTarget):
        return JobFailure(
            code="invalid_target_modules",
            message=f"The base model has no linear layer named {str(error)[:100]!r}.",
            param="hyperparameters.target_modules",
        )
    reason = f"{type(error).__name__}: {error.strerror}" if isinstance(error, OSError) else type(error).__name__
    return JobFailure(code="internal_error", message=f"Training stopped at step {step} with {reason}.")


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.3g} GiB"
