"""What the trainer records of a model beside its files, for adapters that nobody trained."""

import json
import tempfile
from pathlib import Path

from service.contracts.manifest import ADAPTER_CONFIG, Canary
from trainer.engine.adapter import AdapterSettings
from trainer.engine.base import load_engine
from trainer.engine.canary import canary
from trainer.export import read_adapter


class CanaryMaker:
    """Over one base folder; loads it once."""

    def __init__(self, base: Path) -> None:
        self._engine = load_engine(str(base), "cpu", threads=1)

    def make(self, files: dict[str, bytes]) -> Canary | None:
        config = json.loads(files[ADAPTER_CONFIG])
        settings = AdapterSettings(
            rank=config["r"], alpha=config["lora_alpha"], targets=tuple(config["target_modules"]), seed=0
        )
        adapter = self._engine.create_adapter(settings)
        try:
            with tempfile.TemporaryDirectory() as folder:
                for name, content in files.items():
                    (Path(folder) / name).write_bytes(content)
                self._engine.begin_with(adapter, read_adapter(Path(folder)))
            return canary(self._engine, adapter)
        finally:
            self._engine.release(adapter)
