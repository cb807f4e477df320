"""The SDK's check of a local file and the service's of an uploaded one find the same, line for line.

The corpus is that of the service's own tests, and a thousand seeded mutations of it.
"""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from service.files.fixes import FIXES
from service.files.inspection import Findings, Inspection
from service.settings import ServiceSettings
from tests.service.files.test_datasets import ACCEPTED, LIMIT, REFUSED, REFUSED_PREFERENCES
from weft import datasets
from weft.datasets import checking, fixes
from weft.types import DatasetReport
from weft.types.files import MIN_EXAMPLES

LINES = [*ACCEPTED, *(line for _, line in (*REFUSED, *REFUSED_PREFERENCES))]
SMALL = [line for line in LINES if len(line) < 3000 and b"\n" not in line]
PIECES = [
    *(
        b'{"prompt":"a","completion":"b","n":%s}' % number
        for number in (b"1e999", b"-1e999", b"9" * 400, b"1" * 25, b"-0")
    ),
    *(
        b'{"prompt":"a","completion":"b","n":%s}' % number
        for number in (b"Infinity", b"-Infinity", b"01", b"1.", b"+1")
    ),
    b'{"prompt":"\\ud83d","completion":"b"}',
    b'{"prompt":"\\udc00\\ud800","completion":"b"}',
    b'{"prompt":"\\\\ud800","completion":"b"}',
    b'{"prompt":"\\\\\\ud800","completion":"b"}',
    b'{"prompt":"\\ud800","prompt":"a","completion":"b"}',
    b'{"prompt":"a","completion":"b","deep":' + b"[" * 1030 + b"]" * 1030 + b"}",
    b'{"prompt":"a","completion":"b","deep":' + b"[" * 240 + b"]" * 240 + b"}",
    b'{"prompt":"' + b"[" * 2000 + b'","completion":"b"}',
    b'{"completion":"b","prompt":"a"}',
    b'{"prompt":"a","completion":"b"}',
    b'{"prompt" : "\\u0061","completion":"b"}',
    b'{"prompt":"a","completion":"b"}\xc2\xa0',
]


def at_the_service(content: bytes, purpose: str = "fine-tune", other: bytes | None = None) -> Findings:
    others = None
    if other is not None:
        compared = Inspection(purpose, LIMIT)
        compared.feed(other)
        compared.finish()
        others = compared.fingerprints
    inspection = Inspection(purpose, LIMIT, others)
    inspection.feed(content)
    return inspection.finish()


def offline(folder: Path, content: bytes, purpose: Any = "fine-tune", other: bytes | None = None) -> DatasetReport:
    (folder / "file.jsonl").write_bytes(content)
    if other is not None:
        (folder / "other.jsonl").write_bytes(other)
    compare = None if other is None else folder / "other.jsonl"
    return datasets.check(folder / "file.jsonl", purpose=purpose, compare=compare)


def agree(found: Findings, report: DatasetReport) -> None:
    assert [(each.line, each.code) for each in report.problems] == [(each.line, each.code) for each in found.problems]
    # Where a line is not JSON, each parser counts its own column.
    ours = [each.message for each in report.problems if each.code != "invalid_json"]
    assert ours == [each.message for each in found.problems if each.code != "invalid_json"]
    assert report.problem_counts == found.counts
    assert (report.format, report.complete) == (found.example_format, not found.given_up)
    assert (report.lines, report.valid) == (found.lines, found.examples)
    lengths = {each.up_to: each.examples for each in report.tokens.histogram}
    assert (report.tokens.total, report.tokens.max, lengths) == (
        found.lengths.total,
        found.lengths.longest,
        found.lengths.histogram,
    )
    repeats = [(each.line, each.first_line) for each in report.duplicates.lines]
    assert repeats == [(each.line, each.same_as) for each in found.duplicates.lines]
    assert (report.duplicates.examples, report.duplicates.examined) == (
        found.duplicates.examples,
        found.duplicates.examined,
    )
    if found.overlap is not None:
        assert report.overlap is not None
        shared = [(each.line, each.compared_line) for each in report.overlap.lines]
        assert shared == [(each.line, each.same_as) for each in found.overlap.lines]


def test_each_line_of_the_corpus_alone(tmp_path: Path) -> None:
    for line in [*LINES, *PIECES]:
        agree(at_the_service(line), offline(tmp_path, line))


def test_the_whole_corpus_as_one_file(tmp_path: Path) -> None:
    content = b"\n".join([*LINES, *PIECES])
    agree(at_the_service(content), offline(tmp_path, content))


def mutated(line: bytes, chance: random.Random) -> bytes:
    """The line with a few of its bytes, or one of its values, changed."""
    if chance.random() < 0.5:
        changed = bytearray(line)
        for _ in range(chance.randint(1, 3)):
            place = chance.randrange(len(changed))
            piece = chance.choice(
                [b"", b'"', b"\\", b"{", b"]", b",", b"0", b"null", b"\\u0000", b"\xff", b"\\ud800", b" "]
            )
            changed[place : place + chance.randint(0, 2)] = piece
        return bytes(changed).replace(b"\n", b" ")
    try:
        value = json.loads(line)
    except ValueError:
        return line
    places = list(walked(value))
    if not places:
        return line
    holder, key = chance.choice(places)
    replacements: list[Any] = [None, 5, 0.5, "", "text", [], {}, True, [{}], {"role": "assistant"}, "{}", "\0", 2**70]
    holder[key] = chance.choice(replacements)
    return json.dumps(value).encode()


def walked(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        yield value, key
        yield from walked(item)


@pytest.mark.parametrize("seed", range(10))
def test_mutations_of_the_corpus(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    lines = [mutated(chance.choice(SMALL), chance) for _ in range(100)]
    for line in lines:
        agree(at_the_service(line), offline(tmp_path, line))
    agree(at_the_service(b"\n".join(lines)), offline(tmp_path, b"\n".join(lines)))


REQUEST = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", "messages": []}}
REQUESTS: list[dict[str, Any]] = [
    REQUEST,
    {**REQUEST, "custom_id": "b"},
    REQUEST,
    {**REQUEST, "custom_id": 5},
    {**REQUEST, "custom_id": "x" * 513},
    {**REQUEST, "custom_id": "c", "method": "GET"},
    {**REQUEST, "custom_id": "d", "url": "/v1/other"},
    {**REQUEST, "custom_id": "e", "url": "/v1/embeddings"},
    {**REQUEST, "custom_id": "f", "body": []},
    {**REQUEST, "custom_id": "g", "body": {}},
    {},
]


def test_files_of_requests(tmp_path: Path) -> None:
    content = b"\n".join(json.dumps(request).encode() for request in REQUESTS)
    agree(at_the_service(content, "batch"), offline(tmp_path, content, "batch"))


def test_overlap_with_another_file(tmp_path: Path) -> None:
    content, other = b"\n".join(ACCEPTED[-3:]), b"\n".join([ACCEPTED[-1], ACCEPTED[-3]])
    agree(at_the_service(content, other=other), offline(tmp_path, content, other=other))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n" * 200_002 + ACCEPTED[0],
        b"x" * (20 * LIMIT),
        b"\xef\xbb\xbf" + ACCEPTED[0] + b"\n\n\n",
        b"{}\n" * 100_010,
        ACCEPTED[0] + b"\n\n" + ACCEPTED[0],
    ],
    ids=["empty", "blank", "one long line", "byte order mark", "hopeless", "blank in the middle"],
)
def test_whole_files(content: bytes, tmp_path: Path) -> None:
    agree(at_the_service(content), offline(tmp_path, content))


def test_the_limits_and_fixes_are_the_services() -> None:
    assert fixes.FIXES == FIXES
    assert checking.MAX_LINE_BYTES == LIMIT
    assert (checking.PATIENCE, checking.KEPT_PROBLEMS) == (100_000, 100)
    assert ServiceSettings.model_fields["min_examples"].default == MIN_EXAMPLES
