"""A training file into a `datasets` folder: owns line numbers, limits and the counts that are reported.

Lines are read, rendered and tokenised a batch at a time and written through Arrow: memory does not grow with the file.
A line becomes one row, for dpo two: what is preferred, then what is not.
"""

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import datasets
from datasets import Dataset, Features, Value
from datasets.exceptions import DatasetGenerationError
from transformers import PreTrainedTokenizerBase

from service.contracts.worker import JobFailure
from trainer.data.encode import Encoded, Encoder
from trainer.data.examples import InvalidExample, parse_line
from trainer.data.render import Rendered, Renderer
from trainer.folder import whole_folder
from trainer.protocol import Prepare, Prepared

MAX_LINE_BYTES = 8 << 20
BATCH_LINES = 256
BATCH_CHARACTERS = 1 << 20
ANSWERS = ("preferred", "non-preferred")
FEATURES = Features({"input_ids": datasets.List(Value("int32")), "weights": datasets.List(Value("float32"))})


class InvalidFile(Exception):
    """The file cannot be trained on; the message tells its owner why and where."""


@dataclass
class Counts:
    examples: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    truncated: int = 0

    def add(self, rows: Sequence[Encoded]) -> None:
        """One example."""
        self.examples += 1
        self.tokens += sum(len(row.input_ids) for row in rows)
        self.trained_tokens += sum(row.trained_tokens for row in rows)
        self.truncated += any(row.truncated for row in rows)


@dataclass(frozen=True)
class Lines:
    """Examples that are tokenised in one go: their line numbers, and what each is rendered to."""

    numbers: list[int]
    rendered: list[tuple[Rendered, ...]]

    @property
    def full(self) -> bool:
        characters = sum(len(row.text) for rows in self.rendered for row in rows)
        return len(self.numbers) == BATCH_LINES or characters > BATCH_CHARACTERS


class Preparer:
    """Answers Prepare commands with one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._renderer = Renderer(tokenizer)
        self._encoder = Encoder(tokenizer)

    def prepare(self, command: Prepare) -> Prepared:
        """Raises InvalidFile for what the file's owner must mend; anything else is ours."""
        counts = Counts()
        target = Path(command.out_dir)
        with whole_folder(target) as folder, tempfile.TemporaryDirectory(dir=target.parent) as cache:
            try:
                dataset = Dataset.from_generator(
                    self._rows,
                    features=FEATURES,
                    cache_dir=cache,
                    gen_kwargs={"command": command, "counts": counts},
                    # Given, so that neither the tokenizer is hashed for one nor an earlier result is ever reused.
                    fingerprint=Path(cache).name,
                )
            except DatasetGenerationError as error:
                raise error.__cause__ or error from None
            cast(Dataset, dataset).save_to_disk(str(folder))
        return Prepared(
            job_id=command.job_id,
            role=command.role,
            examples=counts.examples,
            tokens=counts.tokens,
            trained_tokens=counts.trained_tokens,
            truncated=counts.truncated,
        )

    def _rows(self, command: Prepare, counts: Counts) -> Iterator[dict[str, Any]]:
        for batch in self._batches(command):
            flat = list(itertools.chain.from_iterable(batch.rendered))
            encoded = iter(self._encoder.encode(flat, command.max_seq_length))
            for number, rendered in zip(batch.numbers, batch.rendered, strict=True):
                rows = tuple(itertools.islice(encoded, len(rendered)))
                for place, row in enumerate(rows):
                    if not row.trained_tokens:
                        raise InvalidFile(f"line {number}: {_nothing_to_train(command, place, row)}")
                counts.add(rows)
                yield from ({"input_ids": row.input_ids, "weights": row.weights} for row in rows)
        if not counts.examples:
            raise InvalidFile("The file holds no example.")

    def _batches(self, command: Prepare) -> Iterator[Lines]:
        batch = Lines([], [])
        for number, line in _lines(command.path):
            try:
                examples = parse_line(line, command.method)
                batch.rendered.append(tuple(self._renderer.render(example) for example in examples))
            except InvalidExample as error:
                raise InvalidFile(f"line {number}: {error}.") from None
            batch.numbers.append(number)
            if batch.full:
                yield batch
                batch = Lines([], [])
        if batch.numbers:
            yield batch


def _lines(path: str) -> Iterator[tuple[int, bytes]]:
    """Lines with something on them, numbered from 1 as editors do."""
    with Path(path).open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise InvalidFile(f"line {number}: it is longer than {MAX_LINE_BYTES >> 20} MiB.")
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if line.strip():
                yield number, line


def _nothing_to_train(command: Prepare, place: int, row: Encoded) -> str:
    part = "an assistant message" if command.method == "supervised" else f"the {ANSWERS[place]} answer"
    if row.truncated:
        return (
            f"the first {command.max_seq_length} tokens (max_seq_length) hold nothing of {part}; "
            "shorten what comes before it or raise max_seq_length."
        )
    if command.method == "supervised":
        return "every assistant message has weight 0 or is empty, so there is nothing to learn from it."
    return f"the chat template of this base writes nothing for {part}, so there is nothing to learn from it."


def as_failure(error: Exception, command: Prepare) -> JobFailure:
    """What the job's owner is told. Only InvalidFile speaks of the file; the rest names the kind of error alone."""
    param = f"{command.role}_file"
    if isinstance(error, InvalidFile):
        return JobFailure(code=f"invalid_{param}", message=str(error), param=param)
    reason = f"{type(error).__name__}: {error.strerror}" if isinstance(error, OSError) else type(error).__name__
    return JobFailure(code="internal_error", message=f"The {command.role} file could not be prepared ({reason}).")
