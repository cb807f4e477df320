"""Which adapters are hot: what is used most counts, what was used long ago fades, and a broken file is no obstacle."""

from pathlib import Path

import pytest

from inference.hottest import HALF_LIFE_SECONDS, KEPT, Hottest

A, B, C = ("a" * 64, "b" * 64, "c" * 64)


def test_use_counts_and_fades(tmp_path: Path) -> None:
    hottest = Hottest(tmp_path / "hot.json")
    for _ in range(8):
        hottest.note(A, now=0.0)
    hottest.note(B, now=0.0)
    hottest.note(C, now=2 * HALF_LIFE_SECONDS)
    assert hottest.first(3) == [A, C, B], "eight uses two half-lives ago weigh two, one weighs a quarter"


def test_order_outlives_the_process(tmp_path: Path) -> None:
    before = Hottest(tmp_path / "hot.json")
    for name in (A, B, B):
        before.note(name)
    before.save()
    assert Hottest(tmp_path / "hot.json").first(9) == [B, A]
    assert [path.name for path in tmp_path.iterdir()] == ["hot.json"]


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"../x": 1}', b'{"a": "b"}', b'{"%s": NaN}' % A.encode()])
def test_broken_file_is_a_cold_start(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "hot.json").write_bytes(content)
    assert Hottest(tmp_path / "hot.json").first(9) == []


def test_memory_is_bounded(tmp_path: Path) -> None:
    hottest = Hottest(tmp_path / "hot.json")
    for number in range(3 * KEPT):
        hottest.note(f"{number:064x}", now=float(number))
    assert len(hottest.first(10**6)) <= 2 * KEPT
    assert hottest.first(1) == [f"{3 * KEPT - 1:064x}"]
