"""How many tokens texts have, by a base model's own tokenizer. The child that inspects files loads it, nothing else."""

import sys
import time
from collections.abc import Iterable

from tokenizers import Tokenizer

PIECE = 64 << 10
"""Longer texts are counted in pieces of so many characters, for memory; a seam may cost a token."""


class TokenCount:
    """Counts for `seconds` of processor time: a tokenizer may take microseconds for every byte."""

    def __init__(self, tokenizer: Tokenizer, seconds: float) -> None:
        self._tokenizer, self._left = tokenizer, seconds

    def __call__(self, texts: Iterable[str]) -> int | None:
        """Without what a chat template would add to them; None where the time is up."""
        if self._left <= 0:
            return None
        began = time.process_time()
        pieces = [text[start : start + PIECE] for text in texts for start in range(0, len(text), PIECE)]
        total = 0
        for piece in pieces:
            (encoding,) = self._tokenizer.encode_batch_fast([piece], add_special_tokens=False)
            total += len(encoding.ids)
        self._left -= time.process_time() - began
        return total


def load(path: str, seconds: float) -> TokenCount | None:
    """None, and why, where the operator's file is no tokenizer that this library reads: lengths are then estimated."""
    try:
        return TokenCount(Tokenizer.from_file(path), seconds)
    except Exception as error:  # The library raises nothing more definite.
        sys.stderr.write(f"file inspector: {path} cannot be read as a tokenizer: {error}\n")
        return None
