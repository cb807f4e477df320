"""What was found wrong with an adapter, remembered for as long as it cannot have changed, or for under a second.

A short memory is what keeps a crowd of requests for a missing or damaged adapter from becoming a crowd of fetches;
because it is short, an adapter that was uploaded or repaired meanwhile answers within a second.
"""

import time
from collections import OrderedDict

from inference.problems import AdapterError
from service.contracts.replica import AdapterProblem

SECONDS: dict[AdapterProblem, float] = {
    "adapter_not_found": 0.5,
    "adapter_corrupt": 0.5,
    # The id is the hash of these very bytes: they will not become better.
    "adapter_invalid": 300.0,
}
"""What is not named here may pass at any moment and is asked anew."""
_KEPT = 1024


class Verdicts:
    def __init__(self) -> None:
        self._errors: OrderedDict[str, tuple[float, AdapterError]] = OrderedDict()

    def remember(self, adapter: str, error: AdapterError, seconds: float | None = None) -> None:
        """For `seconds`, or for as long as the problem lasts as a rule."""
        lasting = SECONDS.get(error.problem, 0.0) if seconds is None else seconds
        if lasting:
            self._errors[adapter] = (time.monotonic() + lasting, error)
            self._errors.move_to_end(adapter)
            if len(self._errors) > _KEPT:
                self._errors.popitem(last=False)

    def check(self, adapter: str) -> None:
        """Raises what is remembered of the adapter."""
        until, error = self._errors.get(adapter, (0.0, None))
        if error is None:
            return
        if time.monotonic() < until:
            raise AdapterError(error.problem, error.message)
        del self._errors[adapter]
