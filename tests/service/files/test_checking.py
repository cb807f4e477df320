"""The child that inspects files: it finds what the same code finds here, and its death is told."""

import random

import psutil
import pytest

from service.errors import Unavailable
from service.files.checking import inspector
from service.files.inspection import Findings, Inspection
from tests.service.files.test_datasets import GOOD

LIMIT = 10_000
LINES = [GOOD, GOOD.replace(b"Hello", b"Bye"), b"{", b"", b"[1]", b"x" * 20_000, GOOD.replace(b"Hi", b"Ho")]


def content(seed: int, count: int = 2000) -> bytes:
    return b"\n".join(random.Random(seed).choices(LINES, k=count)) + b"\n"


def by_child(main: bytes, other: bytes | None, piece: int) -> Findings:
    with inspector("fine-tune", LIMIT, len(main), compared=other is not None) as child:
        for number, file in enumerate(file for file in (other, main) if file is not None):
            if number:
                child.end_file()
            for start in range(0, len(file), piece):
                child.feed(file[start : start + piece])
        return child.finish()


@pytest.mark.parametrize("compared", [False, True])
def test_a_child_finds_the_same(compared: bool) -> None:
    main, other = content(1), content(2, 50) if compared else None
    others = None
    if other is not None:
        beside = Inspection("fine-tune", LIMIT)
        beside.feed(other)
        beside.finish()
        others = beside.fingerprints
    inspection = Inspection("fine-tune", LIMIT, others)
    inspection.feed(main)
    expected = inspection.finish()
    assert expected.problems
    assert expected.duplicates.examples
    assert by_child(main, other, 9999) == expected


def test_a_child_stops_reading_once_it_has_given_up() -> None:
    with inspector("fine-tune", LIMIT, 0, patience=3) as child:
        for _ in range(10_000):
            child.feed(b"{\n" * 10_000)
            if child.given_up:
                break
        assert child.given_up
        assert (found := child.finish()).given_up
    assert found.counts == {"invalid_json": 3}


def test_a_child_that_dies_is_an_error_and_leaves_no_process() -> None:
    before = set(psutil.Process().children())
    with inspector("fine-tune", LIMIT, 0) as child:
        (process,) = set(psutil.Process().children()) - before
        child.feed(GOOD)
        process.kill()
        with pytest.raises(Unavailable):
            child.finish()
    assert set(psutil.Process().children()) <= before


def test_an_example_may_be_nested_as_deep_as_a_line_can_be_read() -> None:
    deep = GOOD[:-1] + b', "extra": ' + b"[" * 900 + b"]" * 900 + b"}"
    inspection = Inspection("fine-tune", LIMIT)
    inspection.feed(b"\n".join([deep, GOOD, deep]) + b"\n")
    found = inspection.finish()
    assert (found.problems, found.duplicates.examples) == ([], 1)
