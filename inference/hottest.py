"""Which adapters are used most lately, kept on disk so that a new vLLM can be warmed with them.

A use counts one and halves every ten minutes. A lost or damaged file costs nothing but a cold start.
"""

import json
import logging
import math
import os
import time
from pathlib import Path

from service.contracts.ids import is_adapter_id

logger = logging.getLogger("weft.hottest")

HALF_LIFE_SECONDS = 600.0
KEPT = 1024


class Hottest:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._scores = _read(path)
        """Logarithms of the decayed counts as they would be at the epoch: comparable without a clock."""
        self._saved = dict(self._scores)

    def note(self, adapter: str, now: float | None = None) -> None:
        weight = (time.time() if now is None else now) / HALF_LIFE_SECONDS
        score = self._scores.get(adapter)
        self._scores[adapter] = weight if score is None else weight + math.log2(1 + 2 ** (score - weight))
        if len(self._scores) > 2 * KEPT:
            self._scores = {name: self._scores[name] for name in self.first(KEPT)}

    def first(self, count: int) -> list[str]:
        """The hottest first."""
        return sorted(self._scores, key=self._scores.__getitem__, reverse=True)[:count]

    def save(self) -> None:
        """Writes the file if anything changed. Blocks for about a millisecond."""
        if self._scores == self._saved:
            return
        kept = {name: self._scores[name] for name in self.first(KEPT)}
        scratch = self._path.with_suffix(".tmp")
        try:
            scratch.write_text(json.dumps(kept))
            os.replace(scratch, self._path)
        except OSError as error:
            logger.warning("cannot write %s: %s", self._path.name, error.strerror)
        self._saved = dict(self._scores)


def _read(path: Path) -> dict[str, float]:
    try:
        found = json.loads(path.read_bytes())
        return {name: float(score) for name, score in found.items() if is_adapter_id(name) and math.isfinite(score)}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        logger.warning("%s is not readable (%s); starting cold", path.name, type(error).__name__)
        return {}
