"""How the children are started, from the settings."""

import sys
from dataclasses import dataclass

from trainer.settings import TrainerSettings


@dataclass(frozen=True)
class ChildCommands:
    preparer: tuple[str, ...]
    engine: tuple[str, ...]
    converter: tuple[str, ...] = ()
    """Empty where the agent takes no transfers."""


def child_commands(settings: TrainerSettings) -> ChildCommands:
    engine = {
        "--base": settings.base_source,
        "--fingerprint": settings.base_fingerprint,
        "--threads": str(settings.threads),
        "--device": settings.device,
        "--memory-bytes": str(int(settings.memory_gib * (1 << 30))),
        "--checkpoint-seconds": str(settings.checkpoint_seconds),
    }
    converter = {
        "--base": settings.base_source,
        "--memory-bytes": str(int(settings.transfer_memory_gib * (1 << 30))),
    }
    return ChildCommands(
        preparer=(sys.executable, "-m", "trainer.data", "--base", settings.base_source),
        engine=(sys.executable, "-m", "trainer.engine", *(word for option in engine.items() for word in option)),
        converter=(sys.executable, "-m", "trainer.convert", *(word for option in converter.items() for word in option)),
    )
