"""Adapters in quarantine: for a day, also over restarts, and never so many that they fill a heartbeat."""

import json
import time
from pathlib import Path

import pytest

from inference.problems import AdapterError
from inference.quarantine import Quarantine
from service.contracts.replica import MOST_QUARANTINED, QUARANTINE_SECONDS

A, B = "a" * 64, "b" * 64


def refused(quarantine: Quarantine, adapter: str) -> bool:
    try:
        quarantine.check(adapter)
    except AdapterError as error:
        return error.problem == "adapter_invalid"
    return False


def test_only_what_is_confirmed_outlives_the_process(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "q.json")
    quarantine.suspect(A)
    quarantine.suspect(B)
    quarantine.confirm(B)
    assert refused(quarantine, A)
    assert refused(quarantine, B)
    again = Quarantine(tmp_path / "q.json")
    assert not refused(again, A)
    assert refused(again, B)
    assert again.confirmed == quarantine.confirmed
    assert [path.name for path in tmp_path.iterdir()] == ["q.json"]


def test_it_ends(tmp_path: Path) -> None:
    now = time.time()
    (tmp_path / "q.json").write_text(json.dumps({A: now - QUARANTINE_SECONDS - 1, B: now - QUARANTINE_SECONDS + 60}))
    quarantine = Quarantine(tmp_path / "q.json")
    assert not refused(quarantine, A)
    assert refused(quarantine, B)
    assert list(quarantine.confirmed) == [B]


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b'{"../x": 1}', b'{"%s": "b"}' % A.encode(), b'{"%s": NaN}' % A.encode()]
)
def test_broken_file_holds_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "q.json").write_bytes(content)
    assert Quarantine(tmp_path / "q.json").confirmed == {}


def test_it_is_bounded(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "q.json")
    names = [f"{number:064x}" for number in range(MOST_QUARANTINED + 1)]
    for name in names:
        quarantine.confirm(name)
    assert list(quarantine.confirmed) == names[1:], "the oldest goes"
