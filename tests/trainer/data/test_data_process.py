"""The preparer over real pipes: what it answers to good files, and that no file ends it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest

from trainer.protocol import FromPreparer, Prepare, Prepared, PrepareFailed, PreparerReady, from_preparer

GOOD = {"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "A!"}]}


class PreparerProcess:
    def __init__(self, base: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "trainer.data", "--base", str(base)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def answer(self) -> FromPreparer:
        assert self.process.stdout
        return from_preparer.validate_json(self.process.stdout.readline())

    def prepare(self, path: Path, out: Path, limit: int = 200, **more: str) -> FromPreparer:
        fields = {"job_id": "ftjob-1", "role": "training", "path": str(path), "out_dir": str(out), **more}
        command = Prepare.model_validate({**fields, "max_seq_length": limit})
        assert self.process.stdin
        self.process.stdin.write(command.model_dump_json().encode() + b"\n")
        self.process.stdin.flush()
        return self.answer()


@pytest.fixture(scope="module")
def preparer(tiny_base_dir: Path) -> Iterator[PreparerProcess]:
    child = PreparerProcess(tiny_base_dir)
    ready = child.answer()
    assert isinstance(ready, PreparerReady)
    assert ready.chat_template_sha256
    yield child
    assert child.process.stdin
    child.process.stdin.close()
    assert child.process.wait(20) == 0


def failure(preparer: PreparerProcess, tmp_path: Path, content: bytes, **more: object) -> PrepareFailed:
    path = tmp_path / "file.jsonl"
    path.write_bytes(content)
    answer = preparer.prepare(path, tmp_path / "out", **more)  # type: ignore[arg-type]
    assert isinstance(answer, PrepareFailed)
    assert not (tmp_path / "out").exists()
    return answer


def test_a_good_file_is_counted_and_readable_with_datasets(preparer: PreparerProcess, tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    long = {"messages": [*GOOD["messages"], {"role": "assistant", "content": "x" * 300}]}
    lines = [json.dumps(GOOD), "", json.dumps(long), json.dumps({"prompt": "p", "completion": "c"})]
    path.write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode())
    answer = preparer.prepare(path, tmp_path / "out", limit=60)
    assert isinstance(answer, Prepared)
    dataset = datasets.load_from_disk(str(tmp_path / "out"))
    assert isinstance(dataset, datasets.Dataset)
    weights = [weight for row in dataset["weights"] for weight in row]
    assert (answer.examples, answer.truncated) == (3, 1) == (len(dataset), 1)
    assert answer.tokens == sum(len(row) for row in dataset["input_ids"]) == len(weights)
    assert answer.trained_tokens == sum(weight > 0 for weight in weights) > 0
    assert max(len(row) for row in dataset["input_ids"]) == 60
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file.jsonl", "out"]


def preference(better: str, worse: str, question: str = "a?") -> bytes:
    return json.dumps(
        {
            "input": {"messages": [{"role": "user", "content": question}], "tools": [], "parallel_tool_calls": True},
            "preferred_output": [{"role": "assistant", "content": better}],
            "non_preferred_output": [{"role": "assistant", "content": worse}],
        }
    ).encode()


def test_a_preference_file_gives_two_rows_a_line_and_counts_lines(preparer: PreparerProcess, tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    path.write_bytes(b"\n".join([preference("yes", "no"), b"", preference("short", "x" * 300), preference("y", "n")]))
    answer = preparer.prepare(path, tmp_path / "out", limit=60, method="dpo")
    assert isinstance(answer, Prepared)
    dataset = datasets.load_from_disk(str(tmp_path / "out"))
    assert isinstance(dataset, datasets.Dataset)
    assert (answer.examples, answer.truncated, len(dataset)) == (3, 1, 6)
    weights = [weight for row in dataset["weights"] for weight in row]
    assert answer.tokens == len(weights)
    assert answer.trained_tokens == sum(weight > 0 for weight in weights)
    lengths = [len(row) for row in dataset["input_ids"]]
    assert lengths[0] == lengths[1] + 1, "preferred first, which is one letter longer"
    assert lengths[2] < lengths[3] == 60


def test_a_preference_answer_that_is_cut_away_is_named_with_its_line(preparer: PreparerProcess, tmp_path: Path) -> None:
    lines = preference("yes", "no") + b"\n" + preference("yes", "no", "x" * 300)
    told = failure(preparer, tmp_path, lines, limit=100, method="dpo").failure
    assert told.code == "invalid_training_file"
    assert told.message.startswith("line 2: the first 100 tokens (max_seq_length) hold nothing of the preferred answer")


def test_a_file_of_the_other_method_is_refused_at_its_first_line(preparer: PreparerProcess, tmp_path: Path) -> None:
    good = failure(preparer, tmp_path, json.dumps(GOOD).encode(), method="dpo").failure
    assert good.message.startswith("line 1: it is a supervised example; method 'dpo' needs")
    other = failure(preparer, tmp_path, preference("yes", "no")).failure
    assert other.message.startswith("line 1: it is a preference example")


def test_an_empty_file_and_an_absent_one(preparer: PreparerProcess, tmp_path: Path) -> None:
    assert failure(preparer, tmp_path, b"\n \n").failure.code == "invalid_training_file"
    answer = preparer.prepare(tmp_path / "absent", tmp_path / "out")
    assert isinstance(answer, PrepareFailed)
    assert answer.failure.code == "internal_error"
    assert "FileNotFoundError" in answer.failure.message


def test_the_role_names_the_file_that_is_wrong(preparer: PreparerProcess, tmp_path: Path) -> None:
    answer = failure(preparer, tmp_path, b"[]", role="validation")
    assert (answer.failure.code, answer.failure.param) == ("invalid_validation_file", "validation_file")


SECRET = "s3cr3t"
HOSTILE = {
    "not json": b'{"messages": [s3cr3t',
    "not an object": b'["s3cr3t"]',
    "neither shape": b'{"text": "s3cr3t"}',
    "no messages": b'{"messages": []}',
    "message not an object": b'{"messages": ["s3cr3t"]}',
    "unknown role": b'{"messages": [{"role": "s3cr3t", "content": "x"}]}',
    "content a number": b'{"messages": [{"role": "assistant", "content": 7}]}',
    "an image": b'{"messages": [{"role": "assistant", "content": [{"type": "image_url", "image_url": "s3cr3t"}]}]}',
    "weight 2": b'{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x", "weight": 2}]}',
    "no assistant": b'{"messages": [{"role": "user", "content": "s3cr3t"}]}',
    "empty assistant": b'{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}]}',
    "all weight 0": b'{"messages": [{"role": "assistant", "content": "x", "weight": 0}]}',
    "arguments no json": b'{"messages": [{"role": "assistant", "tool_calls": '
    b'[{"function": {"name": "f", "arguments": "s3cr3t"}}]}]}',
    "tools no objects": b'{"tools": ["s3cr3t"], "messages": [{"role": "assistant", "content": "x"}]}',
    "lone surrogate": b'{"messages": [{"role": "assistant", "content": "\\ud800"}]}',
    "bad utf-8": b'{"messages": [{"role": "assistant", "content": "\xff"}]}',
    "null byte line": b"\x00",
    "deep": b'{"messages":' + b"[" * 5000 + b"]" * 5000 + b"}",
    "too many messages": b'{"messages": [' + b",".join([b'{"role": "user", "content": "x"}'] * 1025) + b"]}",
    "prompt without completion": b'{"prompt": "s3cr3t"}',
    "completion a list": b'{"prompt": "x", "completion": ["s3cr3t"]}',
    "nothing left": b'{"messages": [{"role": "user", "content": "'
    + b"x" * 3000
    + b'"}, {"role": "assistant", "content": "s3cr3t"}]}',
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_line_is_named_by_number_and_never_quoted(
    preparer: PreparerProcess, tmp_path: Path, kind: str
) -> None:
    content = json.dumps(GOOD).encode() + b"\n" + HOSTILE[kind] + b"\n" + json.dumps(GOOD).encode()
    answer = failure(preparer, tmp_path, content)
    assert answer.failure.code == "invalid_training_file"
    assert answer.failure.param == "training_file"
    assert answer.failure.message.startswith("line 2: ")
    assert SECRET not in answer.failure.message


def test_a_line_without_end_is_refused_before_it_fills_memory(preparer: PreparerProcess, tmp_path: Path) -> None:
    assert "longer than 8 MiB" in failure(preparer, tmp_path, b"x" * (9 << 20)).failure.message


def test_deep_but_valid_arguments_are_answered(preparer: PreparerProcess, tmp_path: Path) -> None:
    arguments: dict = {}
    for _ in range(900):
        arguments = {"a": arguments}
    call = {"function": {"name": "f", "arguments": json.dumps(arguments)}}
    path = tmp_path / "file.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "assistant", "tool_calls": [call]}]}))
    assert preparer.prepare(path, tmp_path / "out").type in ("prepared", "prepare_failed")


def test_it_still_serves_after_all_of_this(preparer: PreparerProcess, tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    path.write_text(json.dumps(GOOD))
    first = preparer.prepare(path, tmp_path / "out")
    again = preparer.prepare(path, tmp_path / "out")
    assert isinstance(first, Prepared)
    assert first == again
