"""Whether an adapter predicts here what it predicted where it was trained; asked of vLLM before anybody is answered.

The manifest holds what the trainer saw after a fixed prompt, and how far rounding may move it. Weights in the wrong
layer, of another base or damaged before they were hashed pass every other check and fail this one. A manifest without a
canary is not compared: imported adapters have none.
"""

from collections.abc import Mapping
from pathlib import Path

from inference.problems import AdapterError
from service.contracts.manifest import MANIFEST, AdapterManifest, Canary

LEAST_TOLERANCE = 0.05
"""Mean difference of log probabilities: for kernels that differ where rounding alone would hardly show."""
SPREADS = 3.0
"""Of what the trainer measured for bfloat16. Served in bfloat16, sixteen adapters differed by up to 1.1 of it."""
SEEN = 20
"""Likeliest tokens asked of vLLM, which gives no more by default."""


class Unlike(AdapterError):
    """The adapter predicts something else. Another replica may see it otherwise, so it is corrupt, not invalid."""


def canary_of(folder: Path) -> Canary | None:
    """That of an adapter on disk, which has been proved."""
    return AdapterManifest.model_validate_json((folder / MANIFEST).read_bytes()).canary


def compare(canary: Canary, seen: Mapping[int, float]) -> None:
    """`seen` are the likeliest tokens' log probabilities. Raises Unlike."""
    found, allowed = difference(canary, seen), max(LEAST_TOLERANCE, SPREADS * canary.spread)
    if not found <= allowed:  # NaN differs too
        raise Unlike(
            "adapter_corrupt",
            "This adapter cannot be served: it predicts other tokens than where it was trained "
            f"(log probabilities differ by {found:.2f}, {allowed:.2f} is allowed).",
        )


def difference(canary: Canary, seen: Mapping[int, float]) -> float:
    """In the mean. A token that was not seen is at most as likely as the least likely one that was."""
    if not seen:
        return float("inf")
    least = min(seen.values())
    gaps = [
        abs(seen[token] - logprob) if token in seen else max(0.0, logprob - least)
        for token, logprob in zip(canary.likely, canary.logprobs, strict=True)
    ]
    return sum(gaps) / len(gaps)
