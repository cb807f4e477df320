"""Tokens of files, counted by the base model's own tokenizer for as long as that may take."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from tokenizers import Tokenizer

from deploy.local.tiny_base import MODEL_DIR
from service.files import tokens, validation
from service.files.checking import inspector
from service.files.counting import counting
from service.files.inspection import Findings, Inspection
from service.settings import ServiceSettings

TOKENIZER = str(MODEL_DIR / "tokenizer.json")
KNOWN = Tokenizer.from_file(TOKENIZER)
EXAMPLES = [{"prompt": f"Order {n} ships to Lund. " * (n + 1), "completion": "ünïcode 木 " * 3} for n in range(40)]
CONTENT = "".join(json.dumps(example) + "\n" for example in EXAMPLES).encode()
LENGTHS = [sum(len(KNOWN.encode(text, add_special_tokens=False).ids) for text in each.values()) for each in EXAMPLES]


@pytest.fixture(scope="module")
def service_settings(service_settings: ServiceSettings) -> ServiceSettings:
    base = service_settings.base_models[0].model_copy(update={"tokenizer": TOKENIZER})
    return service_settings.model_copy(update={"base_models": (base,)})


@pytest.fixture(scope="module")
def api(client: Callable[[str], openai.OpenAI], make_project: Callable[[str], tuple[str, str]]) -> openai.OpenAI:
    return client(make_project("counts")[1])


def test_the_report_has_the_tokenizers_own_counts(api: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    file = api.files.create(file=("a.jsonl", io.BytesIO(CONTENT)), purpose="fine-tune").id

    def report() -> Any:
        return api.get(f"/files/{file}/validation", cast_to=object)

    found = report()["tokens"]
    assert (found["method"], found["model"], found["estimated"]) == ("tokenizer", "weft-tiny", False)
    assert (found["total"], found["max"]) == (sum(LENGTHS), max(LENGTHS))
    assert found["mean"] == round(sum(LENGTHS) / len(LENGTHS), 1)
    bounds = [2 ** (length - 1).bit_length() for length in LENGTHS]
    assert found["histogram"] == [{"up_to": each, "examples": bounds.count(each)} for each in sorted(set(bounds))]

    def never(*_: object) -> None:
        raise AssertionError

    # Counted once for each content, as everything in a report is found once.
    monkeypatch.setattr(validation, "_inspected", never)
    assert report()["tokens"] == found


def by_child(content: bytes, tokenizer: str) -> Findings:
    with inspector("fine-tune", 1 << 20, len(content), tokenizer=tokenizer) as child:
        child.feed(content)
        return child.finish()


def test_a_file_that_is_no_tokenizer_makes_estimates(tmp_path: Path) -> None:
    broken = tmp_path / "tokenizer.json"
    broken.write_text("{}")
    inspection = Inspection("fine-tune", 1 << 20)
    inspection.feed(CONTENT)
    assert by_child(CONTENT, str(broken)) == inspection.finish()


def test_a_line_of_the_greatest_length_is_counted_within_the_childs_memory() -> None:
    line = json.dumps({"prompt": "a" * (1 << 19), "completion": " b" * (1 << 17)}).encode()
    assert by_child(line, TOKENIZER).lengths.total == (1 << 19) + (1 << 18)


def test_what_is_left_when_the_time_is_up_is_reckoned_from_what_was_counted() -> None:
    one = json.dumps({"prompt": "a" * 64, "completion": "b"}).encode() + b"\n"
    count = tokens.TokenCount(KNOWN, seconds=1e-9)
    inspection = Inspection("fine-tune", 1 << 20, count=count)
    inspection.feed(one * 3)
    lengths = inspection.finish().lengths
    assert (lengths.counted, lengths.total, lengths.histogram) == (1, 3 * 65, {128: 3})


def test_the_first_base_whose_tokenizer_can_be_read_counts(service_settings: ServiceSettings, tmp_path: Path) -> None:
    (base,) = service_settings.base_models
    without = base.model_copy(update={"name": "without", "tokenizer": None})
    lost = base.model_copy(update={"name": "lost", "tokenizer": str(tmp_path / "none.json")})
    found = counting([without, lost, base])
    assert found is not None
    assert (found.base, found.path) == ("weft-tiny", TOKENIZER)
    assert counting([without, lost]) is None
