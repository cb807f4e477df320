"""Rendered text into token ids and one loss weight a token.

The whole text is tokenised in one piece, exactly as serving does it; the spans are carried over by character offsets.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from trainer.data.render import Rendered


@dataclass(frozen=True)
class Encoded:
    input_ids: np.ndarray
    weights: np.ndarray
    truncated: bool

    @property
    def trained_tokens(self) -> int:
        return int(np.count_nonzero(self.weights))


class Encoder:
    """Tokenises with one tokenizer, cut at `max_seq_length`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.is_fast:
            raise ValueError("The base model's tokenizer gives no character offsets; a tokenizer.json is needed.")
        self._tokenizer: Any = tokenizer
        first = tokenizer("x")["input_ids"][:1]
        self._opening = first if tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id] else []

    def encode(self, batch: list[Rendered], max_seq_length: int) -> list[Encoded]:
        texts = self._tokenizer(
            [rendered.text for rendered in batch],
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return [
            self._weigh(rendered, ids, offsets, max_seq_length)
            for rendered, ids, offsets in zip(batch, texts["input_ids"], texts["offset_mapping"], strict=True)
        ]

    def _weigh(self, rendered: Rendered, ids: list[int], offsets: list[tuple[int, int]], limit: int) -> Encoded:
        edges = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
        # Bytes of one character share an offset and trimmed blanks may have none: a running maximum keeps the order.
        starts, ends = np.maximum.accumulate(edges, axis=0).T
        weights = np.zeros(len(ids), dtype=np.float32)
        for start, end in rendered.spans:
            weights[np.searchsorted(ends, start, "right") : np.searchsorted(starts, end, "left")] = 1.0
        if rendered.plain:
            ids = self._opening + ids
            weights = np.concatenate([np.zeros(len(self._opening), dtype=np.float32), weights])
        weights[:1] = 0.0  # nothing comes before the first token, so nothing predicts it
        return Encoded(np.asarray(ids[:limit], dtype=np.int32), weights[:limit], truncated=len(ids) > limit)
