"""What the owner of a job is told when it fails. Owns codes and wording; who fails is decided elsewhere."""

from service.contracts.worker import JobFailure
from trainer.engine.adapter import NonFinite, OutOfMemory
from trainer.engine.wrap import UnknownTarget


def as_failure(error: Exception, step: int = 0, total_steps: int = 0, rate: float = 0.0) -> JobFailure:
    """What the job's owner is told, never with a word of their data."""
    if isinstance(error, NonFinite):
        return JobFailure(
            code="loss_diverged",
            message=f"The loss or its gradient stopped being a finite number at step {step + 1} of {total_steps}, "
            f"with a learning rate of {rate:.3g}. A lower learning_rate_multiplier may help.",
            param="hyperparameters.learning_rate_multiplier",
        )
    if isinstance(error, OutOfMemory):
        return JobFailure(
            code="out_of_memory",
            message="The trainer's memory does not hold this job with a single example at a time. A lower "
            "max_seq_length or lora_rank may help.",
            param="hyperparameters.max_seq_length",
        )
    if isinstance(error, UnknownTarget):
        return JobFailure(
            code="invalid_target_modules",
            message=f"The base model has no linear layer named {str(error)[:100]!r}.",
            param="hyperparameters.target_modules",
        )
    reason = f"{type(error).__name__}: {error.strerror}" if isinstance(error, OSError) else type(error).__name__
    return JobFailure(code="internal_error", message=f"Training stopped at step {step} with {reason}.")
