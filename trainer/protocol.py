"""Messages between the agent (parent, holds the lease) and its children, one JSON object a line over pipes.

The preparer turns files into token ids and loss weights; the engine trains. Both outlive jobs, so their imports and the
base model are paid once. The converter, for imports and merges, lives for one of them. Commands go to a child's stdin,
replies come from its stdout; everything a library prints is sent to stderr by the child. Paths are on the local disk,
in a work folder of the job that the agent makes and removes.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from service.contracts.job import JobSpec, Method
from service.contracts.manifest import Canary
from service.contracts.worker import CheckpointMetrics, Event, JobFailure


class Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


# Agent → preparer.


class Prepare(Line):
    """Tokenise one JSONL file into a `datasets` folder at `out_dir` with columns `input_ids` and `weights`.

    For dpo each example becomes two rows in a row: what is preferred, then what is not.
    """

    type: Literal["prepare"] = "prepare"
    job_id: str
    role: Literal["training", "validation"]
    method: Method = "supervised"
    path: str
    out_dir: str
    max_seq_length: int


# Preparer → agent.


class PreparerReady(Line):
    type: Literal["preparer_ready"] = "preparer_ready"
    chat_template_sha256: str | None


class Prepared(Line):
    type: Literal["prepared"] = "prepared"
    job_id: str
    role: Literal["training", "validation"]
    examples: int
    tokens: int
    trained_tokens: int = Field(description="Tokens with a loss weight above 0, once over the file.")
    truncated: int = Field(description="Examples cut at max_seq_length.")


class PrepareFailed(Line):
    type: Literal["prepare_failed"] = "prepare_failed"
    job_id: str
    role: Literal["training", "validation"]
    failure: JobFailure


# Agent → engine.


class Start(Line):
    """Admit a job. `checkpoint_dir` holds the files of a checkpoint manifest, or is null to start at step 0.

    A job that starts at step 0 begins with the PEFT-format adapter in `adapter_dir`, or at the base where that is null.
    """

    type: Literal["start"] = "start"
    spec: JobSpec
    training_dir: str
    validation_dir: str | None
    checkpoint_dir: str | None
    adapter_dir: str | None = None
    work_dir: str


class Stop(Line):
    """Stop a job at its next step boundary. With `save`, a checkpoint is written first."""

    type: Literal["stop"] = "stop"
    job_id: str
    save: bool


# Engine → agent.


class EngineReady(Line):
    type: Literal["engine_ready"] = "engine_ready"
    base_fingerprint: str
    load_seconds: float


class Progress(Line):
    type: Literal["progress"] = "progress"
    job_id: str
    step: int
    total_steps: int
    trained_tokens: int
    events: tuple[Event, ...] = ()


class CheckpointWritten(Line):
    """A complete checkpoint lies in `directory`; its files are immutable from here on and the agent removes them."""

    type: Literal["checkpoint_written"] = "checkpoint_written"
    job_id: str
    step: int
    trained_tokens: int
    directory: str


class CheckpointModelWritten(Line):
    """A PEFT-format adapter to be published while the job goes on lies in `directory`; the agent removes it."""

    type: Literal["checkpoint_model_written"] = "checkpoint_model_written"
    job_id: str
    step: int
    directory: str
    target_modules: tuple[str, ...]
    canary: Canary | None = None
    metrics: CheckpointMetrics


class AwaitingMemory(Line):
    """The job is started as soon as jobs that are resident have left it enough memory."""

    type: Literal["awaiting_memory"] = "awaiting_memory"
    job_id: str
    needed_bytes: int
    free_bytes: int


class Trained(Line):
    """The PEFT-format adapter lies in `directory`: adapter_config.json and adapter_model.safetensors."""

    type: Literal["trained"] = "trained"
    job_id: str
    step: int = Field(description="Optimizer steps done.")
    adapter_step: int | None = Field(default=None, description="That of the best evaluation; null where it is `step`.")
    trained_tokens: int
    directory: str
    target_modules: tuple[str, ...]
    canary: Canary | None = None


class Stopped(Line):
    type: Literal["stopped"] = "stopped"
    job_id: str
    step: int
    trained_tokens: int


class JobFailed(Line):
    """This job cannot go on; every other job of the engine is untouched."""

    type: Literal["job_failed"] = "job_failed"
    job_id: str
    step: int
    trained_tokens: int
    failure: JobFailure


# Agent → converter. One process does one of these and ends.


class Import(Line):
    """Make an adapter of this base out of the files in `source_dir`, in PEFT's format, at `out_dir`."""

    type: Literal["import"] = "import"
    source_dir: str
    out_dir: str
    base_model: str = Field(description="Public name, for the adapter's config.")
    max_rank: int


class Merge(Line):
    """Write the base with the adapter in `adapter_dir` merged into it, its config and its tokenizer, to `out_dir`."""

    type: Literal["merge"] = "merge"
    adapter_dir: str
    out_dir: str


# Converter → agent.


class Imported(Line):
    type: Literal["imported"] = "imported"
    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    changes: tuple[str, ...] = Field(description="What had to be changed, in words.")
    canary: Canary | None = None


class Merged(Line):
    type: Literal["merged"] = "merged"


class ConvertFailed(Line):
    """It cannot be done, here or elsewhere; the message says what to do instead."""

    type: Literal["convert_failed"] = "convert_failed"
    failure: JobFailure


ToPreparer = Prepare
FromPreparer = Annotated[PreparerReady | Prepared | PrepareFailed, Field(discriminator="type")]
ToEngine = Annotated[Start | Stop, Field(discriminator="type")]
FromEngine = Annotated[
    EngineReady
    | Progress
    | CheckpointWritten
    | CheckpointModelWritten
    | AwaitingMemory
    | Trained
    | Stopped
    | JobFailed,
    Field(discriminator="type"),
]

ToConverter = Annotated[Import | Merge, Field(discriminator="type")]
FromConverter = Annotated[Imported | Merged | ConvertFailed, Field(discriminator="type")]

to_converter: TypeAdapter[ToConverter] = TypeAdapter(ToConverter)
from_converter: TypeAdapter[FromConverter] = TypeAdapter(FromConverter)
from_preparer: TypeAdapter[FromPreparer] = TypeAdapter(FromPreparer)
to_engine: TypeAdapter[ToEngine] = TypeAdapter(ToEngine)
from_engine: TypeAdapter[FromEngine] = TypeAdapter(FromEngine)
