"""What is kept of the name that a client gives its file."""

import pytest

from service.files.forms import safe_name


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\train.jsonl", "train.jsonl"),
        ("päckchen ✓.jsonl", "päckchen ✓.jsonl"),
        ("a\x1b[31mb\u202e.jsonl", "a[31mb.jsonl"),
        ("/", "file"),
        ("x" * 1000, "x" * 255),
    ],
)
def test_a_filename_is_made_harmless(given: str, kept: str) -> None:
    assert safe_name(given) == kept
