"""What a planned job would take, in tokens, steps, money and time. Numbers that are not known are null, not guessed."""

from service.contracts.job import JobSpec
from service.jobs.models import PaceRow
from service.jobs.pace import BYTES_PER_TOKEN
from service.jobs.plan import Plan
from service.jobs.schemas import EstimatedCost, EstimateObject, Interval
from service.jobs.views import method_of
from service.resources import Resources
from service.usage.prices import Prices

FLOAT_BYTES = 4
COPIES = 4
"""Of each adapter weight: itself, its gradient and two moments."""
MANY_EPOCHS = 10
FEW_EXAMPLES = 50


def estimate(resources: Resources, planned: Plan) -> EstimateObject:
    spec, base = planned.spec, planned.base
    seen = planned.training.bytes * spec.hyperparameters.n_epochs // BYTES_PER_TOKEN
    return EstimateObject(
        model=planned.draft.start_model or base.name,
        tokens=max(seen, planned.expected_tokens),
        trained_tokens=planned.expected_tokens,
        steps=_steps(spec),
        cost=_cost(resources, base.name, planned.expected_tokens),
        seconds=_seconds(planned.pace, planned.expected_tokens),
        adapter_memory_bytes=_adapter_memory(planned),
        method=method_of(spec),
        hyperparameter_rules=spec.rules,
        warnings=_warnings(planned),
    )


def _cost(resources: Resources, base: str, tokens: int) -> EstimatedCost:
    """By the lines that the bill will have."""
    lines = Prices(resources.settings).items(base, prompt=0, completion=0, trained=tokens)
    amount = sum(line.amount for line in lines)
    return EstimatedCost(amount=round(float(amount), 6), currency=resources.settings.currency)


def _steps(spec: JobSpec) -> int:
    chosen = spec.hyperparameters
    return chosen.n_epochs * -(-spec.examples // chosen.batch_size)


def _seconds(pace: PaceRow | None, tokens: int) -> Interval | None:
    if pace is None:
        return None
    bounds = (pace.seconds_low, pace.seconds_median, pace.seconds_high)
    low, median, high = (round(tokens * seconds, 1) for seconds in bounds)
    return Interval(low=low, median=median, high=high)


def _adapter_memory(planned: Plan) -> int | None:
    base = planned.base
    if base.parameters is None:
        return None
    # As `resolve` has it: LoRA on every linear layer has about 20/12 of a weight for each rank, weight and hidden unit.
    weights = planned.spec.hyperparameters.lora_rank * 20 / 12 * base.parameters / base.hidden_size
    return round(weights * FLOAT_BYTES * COPIES)


def _warnings(planned: Plan) -> list[str]:
    spec, warnings = planned.spec, list[str]()
    if planned.pace is None:
        warnings.append("No jobs of this base have been seen yet: tokens are guessed from the file's size.")
    if spec.examples < FEW_EXAMPLES:
        warnings.append(f"{spec.examples} examples are few; {FEW_EXAMPLES} and more give steadier results.")
    if spec.hyperparameters.n_epochs > MANY_EPOCHS and planned.validation is None:
        told = f"{spec.hyperparameters.n_epochs} epochs without a validation file may learn the examples by heart"
        warnings.append(f"{told}; give 'validation_file', and the best step is kept.")
    if spec.start_from is not None and spec.method == "dpo":
        warnings.append(f"Preferences are measured against {spec.base_model}, not against the model it starts from.")
    return warnings
