"""When vLLM is replaced: dead at once, hung within seconds, wrong at the second look; never for being slow."""

import asyncio
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from inference import watch
from inference.child import Child, ChildApi
from inference.watch import Watch
from tests.inference.conftest import replica_settings

SECOND = 0.02
"""The watch's second in these tests."""


@dataclass
class Replica:
    """Stands in for a child and its API."""

    answers: list[float] = field(default_factory=list)
    hung: bool = False
    is_dead: bool = False
    tokens_per_look: float = 0.0
    computes: bool = False
    refuses: bool = False
    tokens: float = 0.0
    canaries: int = 0

    async def dead(self) -> bool:
        return self.is_dead

    async def canary(self, seconds: float) -> float | None:
        self.canaries += 1
        if self.hung:
            await asyncio.sleep(3600)
        return None if self.refuses else self.answers.pop(0) if self.answers else -1.0

    async def tokens_done(self) -> float | None:
        self.tokens += self.tokens_per_look
        return self.tokens

    def engine_seconds(self) -> float | None:
        return time.monotonic() if self.computes else 0.0


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_LOOK_SECONDS", SECOND)
    monkeypatch.setattr(watch, "_COMPUTES", 0.02 * SECOND)
    monkeypatch.setattr(watch, "SPIN_SECONDS", 30 * SECOND)


async def verdict(replica: Replica, tmp_path: Path, seconds: float) -> str | None:
    """What the watch says within so many of its seconds; None if nothing."""
    bounds: dict[str, Any] = {"canary_seconds": 3 * SECOND, "hang_seconds": 5 * SECOND}
    settings = replica_settings("http://127.0.0.1:1", tmp_path, **bounds)
    looking = Watch(cast(Child, replica), cast(ChildApi, replica), settings, -1.0).failure()
    try:
        return await asyncio.wait_for(looking, seconds * SECOND)
    except TimeoutError:
        return None


pytestmark = pytest.mark.usefixtures("quick")


async def test_healthy_replica_is_left_alone(tmp_path: Path) -> None:
    replica = Replica(answers=[-1.0, -1.1, -0.95])
    assert await verdict(replica, tmp_path, 40) is None
    assert replica.canaries >= 3


async def test_dead_engine_is_seen_at_once(tmp_path: Path) -> None:
    assert await verdict(Replica(is_dead=True), tmp_path, 5) == "its engine is dead"


async def test_hung_engine_is_seen_within_ten_seconds(tmp_path: Path) -> None:
    assert await verdict(Replica(hung=True), tmp_path, 13) == "its engine hangs"


async def test_waiting_canary_is_no_alarm_while_others_get_tokens(tmp_path: Path) -> None:
    assert await verdict(Replica(hung=True, tokens_per_look=1), tmp_path, 60) is None


async def test_engine_that_computes_is_given_longer(tmp_path: Path) -> None:
    assert await verdict(Replica(hung=True, computes=True), tmp_path, 20) is None
    assert await verdict(Replica(hung=True, computes=True), tmp_path, 60) == "its engine hangs"


async def test_refused_canary_says_nothing(tmp_path: Path) -> None:
    assert await verdict(Replica(refuses=True, tokens_per_look=1), tmp_path, 40) is None


@pytest.mark.parametrize("answers", [[math.nan, math.nan], [-9.0, -3.0], [-1.0, math.nan, 0.0]])
async def test_base_that_changed_is_replaced(tmp_path: Path, answers: list[float]) -> None:
    assert await verdict(Replica(answers=answers), tmp_path, 40) == "its base no longer answers as it did"


async def test_one_odd_canary_is_asked_again(tmp_path: Path) -> None:
    assert await verdict(Replica(answers=[-1.0, -9.0, -1.0, math.nan, -1.0]), tmp_path, 40) is None
