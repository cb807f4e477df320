"""A training file into a `datasets` folder: owns line numbers, limits and the counts that are reported.

Lines are read, rendered and tokenised a batch at a time and written through Arrow: memory does not grow with the file.
"""

import tempfile
from collections.abc import Iterator
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
FEATURES = Features({"input_ids": datasets.List(Value("int32")), "weights": datasets.List(Value("float32"))})


class InvalidFile(Exception):
    """The file cannot be trained on; the message tells its owner why and where."""


@dataclass
class Counts:
    examples: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    truncated: int = 0

    def add(self, encoded: Encoded) -> None:
        self.examples += 1
        self.tokens += len(encoded.input_ids)
        self.trained_tokens += encoded.trained_tokens
        self.truncated += encoded.truncated


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
                    gen_kwargs={"path": command.path, "limit": command.max_seq_length, "counts": counts},
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

    def _rows(self, path: str, limit: int, counts: Counts) -> Iterator[dict[str, Any]]:
        for numbers, batch in self._batches(path):
            for number, encoded in zip(numbers, self._encoder.encode(batch, limit), strict=True):
                if not encoded.trained_tokens:
                    raise InvalidFile(_nothing_to_train(number, encoded, limit))
                counts.add(encoded)
                yield {"input_ids": encoded.input_ids, "weights": encoded.weights}
        if not counts.examples:
            raise InvalidFile("The file holds no example.")

    def _batches(self, path: str) -> Iterator[tuple[list[int], list[Rendered]]]:
        numbers: list[int] = []
        batch: list[Rendered] = []
        for number, line in _lines(path):
            try:
                batch.append(self._renderer.render(parse_line(line)))
            except InvalidExample as error:
                raise InvalidFile(f"line {number}: {error}.") from None
            numbers.append(number)
            if len(batch) == BATCH_LINES or sum(len(rendered.text) for rendered in batch) > BATCH_CHARACTERS:
                yield numbers, batch
                numbers, batch = [], []
        if batch:
            yield numbers, batch


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


def _nothing_to_train(number: int, encoded: Encoded, limit: int) -> str:
    if encoded.truncated:
        return (
            f"line {number}: the first {limit} tokens (max_seq_length) hold nothing of an assistant message; "
            "shorten what comes before it or raise max_seq_length."
        )
    return f"line {number}: every assistant message has weight 0 or is empty, so there is nothing to learn from it."


def as_failure(error: Exception, command: Prepare) -> JobFailure:
    """What the job's owner is told. Only InvalidFile speaks of the file; the rest names the kind of error alone."""
    param = f"{command.role}_file"
    if isinstance(error, InvalidFile):
        return JobFailure(code=f"invalid_{param}", message=str(error), param=param)
    reason = f"{type(error).__name__}: {error.strerror}" if isinstance(error, OSError) else type(error).__name__
    return JobFailure(code="internal_error", message=f"The {command.role} file could not be prepared ({reason}).")
