"""The loss of a version on held-out answers: as its job recorded it, or measured from the prompt's log probabilities.

Both sides of a comparison are taken in the same way: a recorded loss is of the whole file, a measured one of a sample.
"""

from collections.abc import Sequence
from typing import Any, cast

from service.adapters.models import VersionRow
from service.errors import InvalidRequest
from service.files.models import FileRow
from service.gateway.resolve import Target
from service.promotions.asking import Asker, Told
from service.promotions.examples import CHAT, Example

WORST = 100.0
"""Of one token: a probability of zero has no finite loss."""
ASKED = {"max_tokens": 1, "temperature": 0}


def recorded(versions: Sequence[VersionRow], file: FileRow) -> list[float] | None:
    """The losses that the jobs of all these versions measured on just this content at the end; else None."""
    found: list[float] = []
    for version in versions:
        measured_on: dict[str, Any] = version.provenance.get("validation_file") or {}
        job: dict[str, Any] = version.provenance.get("job") or {}
        loss = (version.evaluation or {}).get("full_valid_loss")
        same = measured_on.get("sha256") == file.sha256 and job.get("method") == "supervised"
        if not same or not isinstance(loss, int | float):
            return None
        found.append(float(loss))
    return found


async def measured(asker: Asker, target: Target, example: Example) -> tuple[float, int, list[Told]]:
    """The mean loss over the tokens of the example's answer, how many those are, and what was asked for it."""
    begin = await asker.ask(target, example.path, {**example.asked, **ASKED})
    whole = {**example.answered, **ASKED, "prompt_logprobs": 0}
    if example.path == CHAT:
        whole["add_generation_prompt"] = False
    told = await asker.ask(target, example.path, whole)
    tokens = _logprobs(told.body)[begin.prompt_tokens :]
    # As in training: what follows the end of the turn, mostly a line break, is the template's, and no model says it.
    while example.path == CHAT and tokens and _is_space(tokens[-1]):
        tokens.pop()
    losses = [_loss(each) for each in tokens]
    if not losses:
        raise InvalidRequest("The example's answer has no tokens.")
    return sum(losses) / len(losses), len(losses), [begin, told]


def _logprobs(body: dict[str, Any]) -> list[Any]:
    """Of a chat they stand beside its choices, of a completion inside each."""
    found = body.get("prompt_logprobs") or body["choices"][0].get("prompt_logprobs")
    if not isinstance(found, list):
        raise InvalidRequest("The model server gave no log probabilities of the prompt.")
    return cast("list[Any]", found)


def _is_space(told: dict[str, dict[str, Any]] | None) -> bool:
    text = next(iter(told.values())).get("decoded_token") if told else None
    return isinstance(text, str) and text.isspace()


def _loss(told: dict[str, dict[str, Any]] | None) -> float:
    if not told:
        return WORST
    # Only the prompt's own token was asked for.
    logprob = next(iter(told.values())).get("logprob")
    return min(-float(logprob), WORST) if isinstance(logprob, int | float) else WORST
