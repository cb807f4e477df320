"""How the two children are started, from the settings."""

import sys
from dataclasses import dataclass

from trainer.settings import TrainerSettings


@dataclass(frozen=True)
class ChildCommands:
    preparer: tuple[str, ...]
    engine: tuple[str, ...]


def child_commands(settings: TrainerSettings) -> ChildCommands:
    engine = {
        "--base": settings.base_source,
        "--fingerprint": settings.base_fingerprint,
        "--threads": str(settings.threads),
        "--device": settings.device,
        "--memory-bytes": str(int(settings.memory_gib * (1 << 30))),
        "--checkpoint-seconds": str(settings.checkpoint_seconds),
    }
    return ChildCommands(
        preparer=(sys.executable, "-m", "trainer.data", "--base", settings.base_source),
        engine=(sys.executable, "-m", "trainer.engine", *(word for option in engine.items() for word in option)),
    )
