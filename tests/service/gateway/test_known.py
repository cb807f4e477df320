"""What is kept for an outage: fresh answers without asking, old ones while nobody can be asked, never a wrong one."""

import asyncio

import pytest

from service.db import DatabaseUnavailable
from service.errors import Unavailable
from service.gateway.known import LastKnown


class Source:
    """A database of one value."""

    def __init__(self) -> None:
        self.value: str | None = "a"
        self.away = False
        self.asked = 0

    async def __call__(self) -> str | None:
        self.asked += 1
        if self.away:
            raise DatabaseUnavailable("away")
        return self.value


async def test_a_fresh_answer_is_not_asked_for_again_until_forgotten() -> None:
    source, known = Source(), LastKnown[str, str](seconds=60)
    assert [await known.get("k", source) for _ in range(3)] == ["a"] * 3
    assert source.asked == 1
    source.value = "b"
    known.forget()
    assert [await known.get("k", source) for _ in range(3)] == ["b"] * 3
    assert source.asked == 2


async def test_none_is_never_kept_and_drops_what_was() -> None:
    source, known = Source(), LastKnown[str, str](seconds=60)
    await known.get("k", source)
    source.value = None
    known.forget()
    assert [await known.get("k", source) for _ in range(2)] == [None, None]
    assert source.asked == 3
    source.away = True
    with pytest.raises(Unavailable):
        await known.get("k", source)


async def test_an_outage_is_bridged_for_the_known_and_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    source, known = Source(), LastKnown[str, str](seconds=0)
    await known.get("k", source)
    source.away = True
    assert [await known.get("k", source) for _ in range(50)] == ["a"] * 50
    # The database is not asked for each of them.
    assert source.asked == 2
    with pytest.raises(Unavailable) as caught:
        await known.get("other", source)
    assert "Retry-After" in caught.value.headers
    monkeypatch.setattr("service.gateway.known.OUTAGE_SECONDS", -1.0)
    known.forget()
    with pytest.raises(Unavailable):
        await known.get("k", source)


async def test_a_silent_database_counts_as_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.gateway.known.ASK_SECONDS", 0.05)
    known = LastKnown[str, str](seconds=0)
    await known.get("k", Source())

    async def silent() -> str:
        await asyncio.sleep(60)
        return "late"

    assert await known.get("k", silent) == "a"
    with pytest.raises(Unavailable):
        await known.get("other", silent)


async def test_an_answer_read_before_a_change_is_not_fresh_after_it() -> None:
    known = LastKnown[str, str](seconds=60)
    reading, changed = asyncio.Event(), asyncio.Event()

    async def slow() -> str:
        reading.set()
        await changed.wait()
        return "old"

    first = asyncio.create_task(known.get("k", slow))
    await reading.wait()
    known.forget()
    changed.set()
    assert await first == "old"
    source = Source()
    assert await known.get("k", source) == "a"
