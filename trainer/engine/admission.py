"""Which jobs wait for memory, and which of them comes next.

Owns the order: first come, first served, but a later job that fits may pass those before it, each of them a bounded
number of times, so that small jobs use what is free and large ones still have their turn. What fits is `memory`'s.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainer.checkpoint import CheckpointInvalid, verify_checkpoint
from trainer.engine.memory import Need, Shape
from trainer.engine.rows import RowFile
from trainer.engine.slots import ModuleShape, rank_class
from trainer.engine.wrap import trained_modules
from trainer.protocol import Start, Stopped

MOST_PASSED = 8
"""Jobs that may pass one that waits."""


@dataclass
class Applicant:
    """A job that is to be let in."""

    start: Start
    need: Need
    alone: bool = False
    """Memory ran out with it, whatever the account says: it is let in with nobody beside it."""
    passed: int = 0

    @property
    def job_id(self) -> str:
        return self.start.spec.job_id


class WaitingRoom:
    """The jobs that wait, in order."""

    def __init__(self) -> None:
        self._applicants: list[Applicant] = []

    def __contains__(self, job_id: str) -> bool:
        return any(applicant.job_id == job_id for applicant in self._applicants)

    def join(self, applicant: Applicant) -> None:
        self._applicants.append(applicant)

    def rejoin(self, applicant: Applicant) -> None:
        """Before all others: it was let in before them."""
        self._applicants.insert(0, applicant)

    def leave(self, job_id: str) -> Applicant | None:
        found = next((applicant for applicant in self._applicants if applicant.job_id == job_id), None)
        if found:
            self._applicants.remove(found)
        return found

    def next(self, fits: Callable[[Applicant], bool]) -> Applicant | None:
        """Takes out the first that fits, unless somebody before it may not be passed again."""
        for place, applicant in enumerate(self._applicants):
            if fits(applicant):
                for earlier in self._applicants[:place]:
                    earlier.passed += 1
                return self._applicants.pop(place)
            if applicant.passed >= MOST_PASSED:
                return None
        return None


def shape_of(start: Start, modules: tuple[ModuleShape, ...]) -> Shape:
    """What a job's memory depends on. Raises UnknownTarget, or OSError where its files are not there."""
    settings = start.spec.hyperparameters
    longest = RowFile(Path(start.training_dir)).longest
    return Shape(
        rank=rank_class(settings.lora_rank),
        own_rank=settings.lora_rank,
        trained=trained_modules(settings.target_modules, modules),
        rows=settings.batch_size,
        longest=max(longest, settings.max_seq_length) if settings.packing else longest,
        longest_validated=RowFile(Path(start.validation_dir)).longest if start.validation_dir else 0,
        paired=start.spec.method == "dpo",
    )


def stopped_waiting(start: Start) -> Stopped:
    """The last word on a job that never got in: it is where its checkpoint is."""
    step, tokens = _where(Path(start.checkpoint_dir)) if start.checkpoint_dir is not None else (0, 0)
    return Stopped(job_id=start.spec.job_id, step=step, trained_tokens=tokens)


def _where(checkpoint: Path) -> tuple[int, int]:
    try:
        state = verify_checkpoint(checkpoint)
    except CheckpointInvalid:
        return 0, 0  # It would have started over.
    return state.step, state.trained_tokens
