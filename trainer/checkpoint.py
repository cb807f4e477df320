"""The checkpoint format: one folder with everything a job needs to go on exactly where it was.

    adapter.safetensors     float32 masters, `<module>.A` [in, rank] and `<module>.B` [rank, out]
    optimizer.safetensors   AdamW moments, `<module>.A.exp_avg` and so on, of the same shapes
    state.json              CheckpointState: the rest, and the sizes of the two files above

Taken at an optimizer-step boundary, so there are no gradients; the data order and the learning rate are functions of
the step. Owns writing, reading and verifying; moving folders to storage is the agent's, slots are the engine's. Torch
is imported only where tensors are touched, so the agent may use the rest.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.contracts.job import JobSpec
from trainer.folder import save_tensors, whole_folder

if TYPE_CHECKING:
    from torch import Tensor

ADAPTER = "adapter.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"


class CheckpointInvalid(Exception):
    """The folder is no checkpoint of this job. The message says what is wrong with it."""


class StepMetrics(BaseModel):
    """What one optimizer step reports about its own batch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train_loss: float
    train_mean_token_accuracy: float


class CheckpointState(BaseModel):
    """Where a job is, apart from its tensors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    job_id: str
    spec_sha256: str = Field(description="`spec_hash` of the job and the number of its examples.")
    step: int = Field(ge=0, description="Optimizer steps done.")
    trained_tokens: int = Field(ge=0)
    unvalidated: StepMetrics | None = Field(
        default=None, description="The last step ends an epoch whose validation is still to be done."
    )
    sizes: dict[str, int] = Field(default={}, description="Bytes of the tensor files.")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory."""

    state: CheckpointState
    adapter: "dict[str, Tensor]"
    optimizer: "dict[str, Tensor]"


def spec_hash(spec: JobSpec, examples: int) -> str:
    """Two runs with the same hash take the same steps."""
    told = spec.model_dump_json(
        include={"job_id", "base_fingerprint", "chat_template_sha256", "seed", "hyperparameters"}
    )
    return hashlib.sha256(f"{told}/{examples}".encode()).hexdigest()


def write_checkpoint(
    directory: Path, state: CheckpointState, adapter: "dict[str, Tensor]", optimizer: "dict[str, Tensor]"
) -> None:
    """Writes the folder whole or not at all. Raises OSError where the disk does not take it."""
    with whole_folder(directory) as folder:
        sizes = {}
        for name, tensors in ((ADAPTER, adapter), (OPTIMIZER, optimizer)):
            save_tensors(folder / name, tensors)
            sizes[name] = (folder / name).stat().st_size
        (folder / STATE).write_text(state.model_copy(update={"sizes": sizes}).model_dump_json())


def verify_checkpoint(directory: Path) -> CheckpointState:
    """The state of a complete checkpoint. Raises CheckpointInvalid for a missing, cut or foreign file."""
    try:
        state = CheckpointState.model_validate_json((directory / STATE).read_bytes())
        sizes = {name: (directory / name).stat().st_size for name in (ADAPTER, OPTIMIZER)}
    except (OSError, ValidationError) as error:
        raise CheckpointInvalid(
            f"{STATE} or a tensor file is missing or unreadable ({type(error).__name__})"
        ) from error
    if sizes != state.sizes:
        raise CheckpointInvalid("a tensor file has another size than when it was written")
    return state


def read_checkpoint(directory: Path, spec_sha256: str) -> Checkpoint:
    """The checkpoint of the job that hashes so. Raises CheckpointInvalid for everything else."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    state = verify_checkpoint(directory)
    if state.spec_sha256 != spec_sha256:
        raise CheckpointInvalid("it was written for another job, other settings or other data")
    try:
        adapter, optimizer = load_file(directory / ADAPTER), load_file(directory / OPTIMIZER)
    except (OSError, SafetensorError) as error:
        raise CheckpointInvalid(f"a tensor file is unreadable ({type(error).__name__})") from error
    return Checkpoint(state, adapter, optimizer)
