"""Every "auto" of a training job turned into a number, with the rule that chose it. Pure: no clock, no database.

Where the rules come from, and what they are worth: docs/decisions/0003-auto-hyperparameters.md.
"""

from dataclasses import dataclass

from service.contracts.base_model import BaseModelInfo
from service.contracts.job import EarlyStopping, Hyperparameters, Method
from service.contracts.servable import MAX_RANK, MAX_SCALE
from service.errors import InvalidRequest
from service.jobs.schemas import RequestedHyperparameters

GIVEN = "given in the request"

TARGET_EPOCHS = 3
TARGET_EXAMPLES = (100, 25_000)
"""OpenAI's rule: three passes, more over few examples and fewer over many, so that this range of examples is seen."""
AUTO_EPOCHS_LIMIT = 25

BATCH_SIZES = ((256, 1), (1_000, 4), (5_000, 8), (20_000, 16))
"""LoRA loses more from large batches than full fine-tuning does, so the batch grows late."""
LARGEST_AUTO_BATCH = 32

RATE_AT_2000 = 5e-4
RATE_EXPONENTS = {"Llama": 0.781, "Mistral": 0.781, "Qwen": 0.0775}
"""How fast the best LoRA rate falls with the hidden size, by the beginning of the architecture's name."""
DPO_RATE = 0.1
"""Preferences are told apart by small differences of probability, which the rate of supervised training overshoots."""
DPO_BETA = 0.1
SHORT_RUN_STEPS = 100
SHORT_RUN_MULTIPLIER = 1.5
LARGEST_RATE = 1.0

RANKS = (16, 32, 64)
BYTES_PER_TOKEN = 4
LONGEST_AUTO_SEQUENCE = 8192


@dataclass(frozen=True)
class Dataset:
    """What the rules look at: the training file's examples and bytes, and whether there is a validation file."""

    examples: int
    size: int
    validated: bool = False


@dataclass(frozen=True)
class Resolved:
    hyperparameters: Hyperparameters
    rules: dict[str, str]


def resolve(
    requested: RequestedHyperparameters,
    base: BaseModelInfo,
    dataset: Dataset,
    method: Method,
    max_rank: int = MAX_RANK,
) -> Resolved:
    """Raises InvalidRequest where the requested values contradict each other, the method or the base.

    `max_rank` is what the replicas serve.
    """
    given = requested.model_dump(exclude_none=True, exclude={"early_stopping"})
    epochs = _epochs(dataset.examples)
    batch = _batch_size(dataset.examples)
    n_epochs, batch_size = given.get("n_epochs", epochs[0]), given.get("batch_size", batch[0])
    steps = n_epochs * -(-dataset.examples // batch_size)
    chosen: dict[str, tuple[object, str]] = {
        "n_epochs": epochs,
        "batch_size": batch,
        "lora_rank": _rank(requested, base, dataset.size, max_rank),
        "lora_alpha": (32.0, "32 for every rank, so that the learning rate need not follow the rank"),
        "target_modules": ("all-linear", "every linear layer, attention and MLP"),
        "warmup_ratio": (0.05, "the first 5 % of the steps"),
        "lr_scheduler": ("linear", "decays linearly to zero"),
        "weight_decay": (0.0, "none"),
        "max_grad_norm": (1.0, "clipped at 1.0"),
        "max_seq_length": _sequence_length(requested, base),
        **_rates(requested, base, steps, method),
        "packing": _packing(requested, method),
        "early_stopping": _early_stopping(requested, dataset),
        "beta": _beta(requested, method),
    }
    values = {name: given.get(name, value) for name, (value, _) in chosen.items()}
    _check_scale(values["lora_rank"], values["lora_alpha"])
    rules = {name: rule if getattr(requested, name) is None else GIVEN for name, (_, rule) in chosen.items()}
    return Resolved(Hyperparameters.model_validate(values), rules)


def base_learning_rate(base: BaseModelInfo) -> tuple[float, str]:
    """The LoRA learning rate of a base at multiplier 1, and how it was found."""
    known = next((name for name in RATE_EXPONENTS if base.architecture.startswith(name)), None)
    if known is not None:
        return _rate(base.hidden_size, RATE_EXPONENTS[known]), f"{known} scaling for hidden size {base.hidden_size}"
    cautious = min(_rate(base.hidden_size, exponent) for exponent in RATE_EXPONENTS.values())
    source = f"{base.architecture} is not in the table, so the lowest scaling for hidden size {base.hidden_size}"
    return cautious, source


def _rate(hidden_size: int, exponent: float) -> float:
    return RATE_AT_2000 * (2000 / hidden_size) ** exponent


def _epochs(examples: int) -> tuple[int, str]:
    least, most = TARGET_EXAMPLES
    if examples * TARGET_EPOCHS < least:
        return max(1, min(AUTO_EPOCHS_LIMIT, least // examples)), f"{least} examples seen in all, at most 25 epochs"
    if examples * TARGET_EPOCHS > most:
        return max(1, most // examples), f"{most} examples seen in all, at least 1 epoch"
    return TARGET_EPOCHS, "3 epochs"


def _batch_size(examples: int) -> tuple[int, str]:
    for limit, size in BATCH_SIZES:
        if examples < limit:
            return size, f"{size} below {limit} examples"
    return LARGEST_AUTO_BATCH, f"{LARGEST_AUTO_BATCH} from {BATCH_SIZES[-1][0]} examples on"


def _rank(requested: RequestedHyperparameters, base: BaseModelInfo, size: int, most: int) -> tuple[int, str]:
    """The smallest rank whose weights outnumber the training tokens; both are estimates."""
    if requested.lora_rank is not None and requested.lora_rank > most:
        raise InvalidRequest(
            f"'lora_rank' is {requested.lora_rank}, and adapters of more than rank {most} are not served here.",
            code="rank_too_large",
            param="lora_rank",
        )
    ranks = tuple(rank for rank in RANKS if rank <= most) or (most,)
    if base.parameters is None:
        return ranks[0], f"{ranks[0]}, since the base's number of parameters is not known"
    # A transformer layer has about 12·h² weights, and LoRA on its linear layers about 20·h for each rank.
    weights_per_rank = 20 / 12 * base.parameters / base.hidden_size
    tokens = size // BYTES_PER_TOKEN
    rank = next((rank for rank in ranks if rank * weights_per_rank >= tokens), ranks[-1])
    return rank, f"smallest of {ranks} with a weight for each of about {tokens} tokens"


def _check_scale(rank: int, alpha: float) -> None:
    """A replica would refuse the trained adapter for ever."""
    if alpha > MAX_SCALE * rank:
        raise InvalidRequest(
            f"'lora_alpha' is {alpha:g} with rank {rank}; adapters are served with an alpha of at most "
            f"{MAX_SCALE:g} times their rank, {MAX_SCALE * rank:g} here.",
            code="alpha_too_large",
            param="lora_alpha",
        )


def _sequence_length(requested: RequestedHyperparameters, base: BaseModelInfo) -> tuple[int, str]:
    wanted = requested.max_seq_length
    if wanted is not None and wanted > base.context_length:
        raise InvalidRequest(
            f"'max_seq_length' is {wanted}, but {base.name} takes at most {base.context_length} tokens.",
            param="max_seq_length",
        )
    if base.context_length <= LONGEST_AUTO_SEQUENCE:
        return base.context_length, "the base's context length"
    return LONGEST_AUTO_SEQUENCE, f"{LONGEST_AUTO_SEQUENCE}, below the base's context length"


def _packing(requested: RequestedHyperparameters, method: Method) -> tuple[bool, str]:
    if requested.packing and method == "dpo":
        raise InvalidRequest(
            "'packing' does not go with method 'dpo', whose examples are pairs; leave it out.", param="packing"
        )
    return bool(requested.packing), "off: an example is a row of its own"


def _early_stopping(requested: RequestedHyperparameters, dataset: Dataset) -> tuple[EarlyStopping | None, str]:
    wanted = requested.early_stopping
    if wanted and not dataset.validated:
        raise InvalidRequest(
            "'early_stopping' looks at the validation loss, and the job has no validation file: "
            "give 'validation_file' or leave 'early_stopping' out.",
            code="missing_validation_file",
            param="early_stopping",
        )
    if isinstance(wanted, EarlyStopping):
        return wanted, GIVEN
    if wanted is False or not dataset.validated:
        return None, "off, since there is no validation file"
    chosen = EarlyStopping()
    few = f"{chosen.patience} evaluations in a row that gain less than {chosen.min_delta:.1%}"
    return chosen, f"on, since there is a validation file: ends after {few}"


def _beta(requested: RequestedHyperparameters, method: Method) -> tuple[float | None, str]:
    if method == "dpo":
        return requested.beta or DPO_BETA, f"{DPO_BETA}, what most preference training uses"
    if requested.beta is not None:
        raise InvalidRequest("'beta' belongs to method 'dpo'; leave it out of method 'supervised'.", param="beta")
    return None, "none: it belongs to method 'dpo'"


def _rates(
    requested: RequestedHyperparameters, base: BaseModelInfo, steps: int, method: Method
) -> dict[str, tuple[float, str]]:
    """Multiplier and absolute rate; each follows from the other, so only one may be given."""
    rate, source = base_learning_rate(base)
    if method == "dpo":
        rate, source = rate * DPO_RATE, f"a tenth of what supervised training takes, {source}"
    multiplier, wanted = requested.learning_rate_multiplier, requested.learning_rate
    if multiplier is not None and wanted is not None:
        raise InvalidRequest(
            "Give 'learning_rate' or 'learning_rate_multiplier', not both: one follows from the other.",
            param="learning_rate",
        )
    rule = "learning_rate divided by the base's own rate"
    if wanted is not None:
        multiplier = wanted / rate
    elif multiplier is None:
        short = steps < SHORT_RUN_STEPS
        multiplier = SHORT_RUN_MULTIPLIER if short else 1.0
        rule = f"{multiplier:g} for {'less than' if short else 'at least'} {SHORT_RUN_STEPS} steps"
    absolute = rate * multiplier if wanted is None else wanted
    if not 0 < absolute <= LARGEST_RATE:
        raise InvalidRequest(
            f"'learning_rate_multiplier' makes the learning rate {absolute:g}; it must be above 0 and at most 1.",
            param="learning_rate_multiplier",
        )
    return {
        "learning_rate_multiplier": (multiplier, rule),
        "learning_rate": (absolute, f"{rate:.3g} ({source}) times learning_rate_multiplier"),
    }
