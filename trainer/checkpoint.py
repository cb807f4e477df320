"""The checkpoint format: one folder with everything a job needs to go on exactly where it was.

    adapter.safetensors     float32 masters, `<module>.A` [in, rank] and `<module>.B` [rank, out]
    optimizer.safetensors   AdamW moments, `<module>.A.exp_avg` and so on, of the same shapes
    best.safetensors        masters as they were at the best evaluation, where there was one
    state.json              CheckpointState: the rest, and the sizes of the files above

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
BEST = "best.safetensors"
STATE = "state.json"
FORMAT_VERSION = 2


class CheckpointInvalid(Exception):
    """The folder is no checkpoint of this job. The message says what is wrong with it."""


class StepMetrics(BaseModel):
    """What one optimizer step reports about its own batch, and about its way through the shared steps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train_loss: float
    train_mean_token_accuracy: float = Field(description="Of dpo: of the preferred answers.")
    train_reward_accuracy: float | None = Field(
        default=None, description="Of dpo: the part of the pairs whose preferred answer has the higher reward."
    )
    train_reward_margin: float | None = Field(default=None, description="Of dpo: by how much, in the mean.")
    learning_rate: float
    grad_norm: float = Field(description="Before clipping.")
    tokens_per_second: float = Field(description="Of this job alone, since its step before.")
    queue_wait_seconds: float = Field(description="Of that time: spent on passes it took no part in.")
    step_share: float = Field(description="Its padded tokens of all in the passes it took part in.")


class Selection(BaseModel):
    """What the evaluations so far have decided."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int = Field(ge=1, description="Of the lowest validation loss: whose adapter is delivered.")
    loss: float
    reference: float = Field(description="The loss at the last gain that early stopping took for one.")
    stale: int = Field(ge=0, description="Evaluations since then.")


class CheckpointState(BaseModel):
    """Where a job is, apart from its tensors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[2] = FORMAT_VERSION
    job_id: str
    spec_sha256: str = Field(description="`spec_hash` of the job and the number of its examples.")
    step: int = Field(ge=0, description="Optimizer steps done.")
    trained_tokens: int = Field(ge=0)
    unvalidated: StepMetrics | None = Field(
        default=None, description="Of the last step, where its evaluation is still to be done."
    )
    selection: Selection | None = Field(default=None, description="Comes with the weights of the best evaluation.")
    sizes: dict[str, int] = Field(default={}, description="Bytes of the tensor files.")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory."""

    state: CheckpointState
    adapter: "dict[str, Tensor]"
    optimizer: "dict[str, Tensor]"
    best: "dict[str, Tensor] | None"


class _Version(BaseModel):
    format_version: int


def spec_hash(spec: JobSpec, examples: int) -> str:
    """Two runs with the same hash take the same steps."""
    told = spec.model_dump_json(
        include={"job_id", "base_fingerprint", "chat_template_sha256", "method", "seed", "hyperparameters"}
    )
    return hashlib.sha256(f"{told}/{examples}".encode()).hexdigest()


def write_checkpoint(
    directory: Path,
    state: CheckpointState,
    adapter: "dict[str, Tensor]",
    optimizer: "dict[str, Tensor]",
    best: "dict[str, Tensor] | None" = None,
) -> None:
    """Writes the folder whole or not at all. Raises OSError where the disk does not take it."""
    with whole_folder(directory) as folder:
        sizes = {}
        for name, tensors in ((ADAPTER, adapter), (OPTIMIZER, optimizer), (BEST, best)):
            if tensors is not None:
                save_tensors(folder / name, tensors)
                sizes[name] = (folder / name).stat().st_size
        (folder / STATE).write_text(state.model_copy(update={"sizes": sizes}).model_dump_json())


def verify_checkpoint(directory: Path) -> CheckpointState:
    """The state of a complete checkpoint. Raises CheckpointInvalid for a missing, cut, foreign or outdated file."""
    try:
        content = (directory / STATE).read_bytes()
        if (version := _Version.model_validate_json(content).format_version) != FORMAT_VERSION:
            raise CheckpointInvalid(f"it has format version {version}, and this trainer reads {FORMAT_VERSION}")
        state = CheckpointState.model_validate_json(content)
        names = (ADAPTER, OPTIMIZER, BEST) if state.selection else (ADAPTER, OPTIMIZER)
        sizes = {name: (directory / name).stat().st_size for name in names}
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
        best = load_file(directory / BEST) if state.selection else None
    except (OSError, SafetensorError) as error:
        raise CheckpointInvalid(f"a tensor file is unreadable ({type(error).__name__})") from error
    return Checkpoint(state, adapter, optimizer, best)
