"""Adapters that made the engine compute values that are not numbers, whatever the gate thought of their bytes.

Kept on disk, so that neither a restart nor the engine's replacement lets one in again, and told to the service, so
that no other replica is hit. Only what is confirmed is kept and told: a broken engine must not condemn adapters.
"""

import json
import logging
import math
import os
import time
from collections import OrderedDict
from datetime import UTC, datetime
from pathlib import Path

from inference.problems import AdapterError
from service.contracts.ids import is_adapter_id
from service.contracts.replica import MOST_QUARANTINED, NOT_NUMBERS, QUARANTINE_SECONDS

logger = logging.getLogger("weft.quarantine")


class Quarantine:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._confirmed = _read(path)
        """Since when, oldest first."""
        self._suspected: OrderedDict[str, float] = OrderedDict()

    @property
    def confirmed(self) -> dict[str, datetime]:
        """Since when."""
        return {
            name: datetime.fromtimestamp(since, UTC) for name, since in self._confirmed.items() if not _is_over(since)
        }

    def check(self, adapter: str) -> None:
        """Raises where no request may use the adapter."""
        since = self._confirmed.get(adapter) or self._suspected.get(adapter)
        if since is not None and not _is_over(since):
            raise AdapterError("adapter_invalid", NOT_NUMBERS)

    def suspect(self, adapter: str) -> None:
        """Lets no further request in, as long as this process lives."""
        _put(self._suspected, adapter)

    def confirm(self, adapter: str) -> None:
        """Writes the file at once, since the engine may be replaced next. Blocks for about a millisecond."""
        _put(self._confirmed, adapter)
        scratch = self._path.with_suffix(".tmp")
        try:
            scratch.write_text(json.dumps(self._confirmed))
            os.replace(scratch, self._path)
        except OSError as error:
            logger.warning("cannot write %s: %s", self._path.name, error.strerror)


def _put(adapters: OrderedDict[str, float], adapter: str) -> None:
    adapters[adapter] = time.time()
    adapters.move_to_end(adapter)
    if len(adapters) > MOST_QUARANTINED:
        adapters.popitem(last=False)


def _is_over(since: float) -> bool:
    return time.time() - since >= QUARANTINE_SECONDS


def _read(path: Path) -> OrderedDict[str, float]:
    try:
        found = json.loads(path.read_bytes())
        kept = {name: float(since) for name, since in found.items() if is_adapter_id(name) and math.isfinite(since)}
    except FileNotFoundError:
        return OrderedDict()
    except (OSError, ValueError, TypeError, AttributeError) as error:
        logger.warning("%s is not readable (%s); nothing is in quarantine", path.name, type(error).__name__)
        return OrderedDict()
    return OrderedDict((name, since) for name, since in kept.items() if not _is_over(since))
