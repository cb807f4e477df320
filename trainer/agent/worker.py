"""What the runs of one agent share."""

from dataclasses import dataclass

import aiohttp

from trainer.agent.engine import EngineHost
from trainer.agent.preparer import PreparerHost
from trainer.agent.quarantine import Quarantine
from trainer.control import ServiceClient
from trainer.settings import TrainerSettings


@dataclass(frozen=True)
class Worker:
    settings: TrainerSettings
    service: ServiceClient
    store: aiohttp.ClientSession
    preparer: PreparerHost
    engine: EngineHost
    """The one that jobs share."""
    quarantine: Quarantine
