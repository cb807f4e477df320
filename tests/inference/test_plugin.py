"""What the plugin asks of vLLM's engine: no question outlives the engine that it was put to."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from inference import plugin
from inference.plugin import VllmEngine
from inference.problems import AdapterError


class Dying:
    """vLLM's client of an engine that takes questions and dies over them: as vLLM's own, it answers none of them."""

    def __init__(self) -> None:
        self.errored = False
        self.lora_requests: dict[str, Any] = {}
        self.lora_resolver_lock: dict[str, Any] = {}

    async def load_lora_adapter(self, request: Any) -> str:
        return await self._never()

    async def unload_lora_adapter(self, request: Any) -> None:
        del self.lora_requests[request.lora_name]

    async def remove_lora(self, lora: int) -> bool:
        return await self._never()

    async def _never(self) -> Any:
        self.errored = True
        await asyncio.Event().wait()


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> Dying:
    monkeypatch.setattr(plugin, "_LOOK_SECONDS", 0.01)
    return Dying()


async def test_a_load_ends_with_its_engine(dying: Dying) -> None:
    engine: Any = VllmEngine(dying, dying)  # type: ignore[arg-type]
    with pytest.raises(AdapterError, match="restarting") as refused:
        await asyncio.wait_for(engine.load("a", Path("somewhere")), 5)
    assert refused.value.problem == "no_capacity"


async def test_what_a_dead_engine_held_counts_as_unloaded(dying: Dying) -> None:
    dying.lora_requests["a"] = SimpleNamespace(lora_int_id=1)
    engine: Any = VllmEngine(dying, dying)  # type: ignore[arg-type]
    await asyncio.wait_for(engine.unload("a"), 5)
    assert not dying.lora_requests
