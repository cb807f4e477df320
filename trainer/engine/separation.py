"""Whether the base keeps packed examples apart: attention and positions that begin anew with each.

Owns the trial that tells. transformers does it for most models, from positions alone; some build their own mask, and
what they do with a packed row nothing says.
"""

import math

import numpy as np

from trainer.engine.lowrank import Layout
from trainer.engine.plan import Demand, Row, plan
from trainer.engine.step import Stepper

LENGTH = 16
"""Tokens of an example of the trial."""

SAME, ALIKE = 1e-5, 1e-2
"""Of losses: what another neighbour may change, and another place in the row, by rounding alone."""


def separates_examples(stepper: Stepper, vocabulary: int) -> bool:
    """One example after each of two others, and before one of them: does its loss change?"""
    before, other, tried = np.split(np.arange(3 * LENGTH, dtype=np.int32) % vocabulary, 3)
    unlabelled, labelled = np.zeros(LENGTH, dtype=np.float32), np.ones(LENGTH, dtype=np.float32)
    rows = [
        Row(np.concatenate((first, tried)), np.concatenate((unlabelled, labelled)), (0, LENGTH))
        for first in (before, other)
    ]
    rows.append(Row(np.concatenate((tried, before)), np.concatenate((labelled, unlabelled)), (0, LENGTH)))
    (batch,) = plan([Demand(rows, 1.0, 1 << 20, (0, 0))], 1 << 20)
    losses = stepper.evaluate(batch, Layout((), *batch.input_ids.shape, jobs=0, adapted=len(rows))).loss
    return math.isclose(losses[0], losses[1], rel_tol=SAME) and math.isclose(losses[0], losses[2], rel_tol=ALIKE)
