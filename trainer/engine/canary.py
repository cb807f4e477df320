"""What an adapter predicts after a fixed prompt, for its manifest: whoever serves it compares before it answers anyone.

Owns the prompt, which follows from the size of the base's vocabulary alone, and what is kept of the answer.
"""

import logging
import math

import numpy as np
import torch

from service.contracts.manifest import Canary
from trainer.engine.adapter import Adapter
from trainer.engine.engine import Engine
from trainer.engine.passes import memory_only
from trainer.engine.plan import Row

log = logging.getLogger("trainer.engine")

PROMPT_TOKENS = 16
"""Shorter than any cache block, and one cheap pass; long enough that every layer's adapter has a say."""
STRIDE = 7919
"""A prime: the prompt's tokens are far apart in every vocabulary."""
LIKELY = 8
DIGITS = 4


def prompt(vocabulary: int) -> tuple[int, ...]:
    return tuple(STRIDE * place % vocabulary for place in range(1, PROMPT_TOKENS + 1))


def canary(engine: Engine, adapter: Adapter) -> Canary | None:
    """None where it cannot be had: a job is not lost for it."""
    tokens = prompt(engine.vocabulary)
    labelled = np.zeros(PROMPT_TOKENS + 1, dtype=np.float32)
    labelled[-1] = 1.0
    row = Row(np.array([*tokens, 0], dtype=np.int32), labelled)
    try:
        seen, blurred = (torch.log_softmax(engine.logits(adapter, row, blur), 0) for blur in (False, True))
    except (RuntimeError, MemoryError) as error:
        log.warning("no memory for a canary: %s", type(memory_only(error)).__name__)
        return None
    found = seen.topk(min(LIKELY, engine.vocabulary))
    spread = float((found.values - blurred[found.indices]).abs().mean())
    if not math.isfinite(spread):
        return None
    # A database may keep -0.0 as 0.0, and the manifest's hash is the adapter's id.
    logprobs = tuple(round(value, DIGITS) + 0.0 for value in found.values.tolist())
    likely = tuple(found.indices.tolist())
    return Canary(prompt=tokens, likely=likely, logprobs=logprobs, spread=round(spread, DIGITS))
