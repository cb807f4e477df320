"""Every "auto" becomes a number with a rule; every given value stays what it is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contracts.base_model import BaseModelInfo
from service.contracts.job import EarlyStopping, Hyperparameters, Method
from service.contracts.servable import check_scale
from service.errors import InvalidRequest
from service.jobs.resolve import GIVEN, Dataset, Resolved, base_learning_rate, resolve
from service.jobs.schemas import RequestedHyperparameters


def base(architecture: str = "LlamaForCausalLM", hidden: int = 4096, **facts: object) -> BaseModelInfo:
    values: dict[str, object] = {
        "name": "base",
        "source": "base",
        "fingerprint": "f" * 64,
        "chat_template_sha256": None,
        "architecture": architecture,
        "hidden_size": hidden,
        "context_length": 131072,
        "parameters": 8_000_000_000,
    }
    return BaseModelInfo.model_validate({**values, **facts})


def auto(examples: int, size: int = 100_000, of: BaseModelInfo | None = None, **given_values: object) -> Resolved:
    return _resolved(Dataset(examples, size), "supervised", of, **given_values)


def dpo(examples: int, **given_values: object) -> Resolved:
    return _resolved(Dataset(examples, 100_000), "dpo", None, **given_values)


def validated(**given_values: object) -> Resolved:
    return _resolved(Dataset(100, 100_000, validated=True), "supervised", None, **given_values)


def _resolved(dataset: Dataset, method: Method, of: BaseModelInfo | None, **given_values: object) -> Resolved:
    return resolve(RequestedHyperparameters.model_validate(given_values), of or base(), dataset, method)


@pytest.mark.parametrize(
    ("examples", "epochs"),
    [(1, 25), (4, 25), (5, 20), (10, 10), (33, 3), (34, 3), (1000, 3), (8333, 3), (8334, 2), (12_501, 1), (10**6, 1)],
)
def test_epochs_follow_openais_rule(examples: int, epochs: int) -> None:
    assert auto(examples).hyperparameters.n_epochs == epochs


@pytest.mark.parametrize(
    ("examples", "batch"), [(10, 1), (255, 1), (256, 4), (999, 4), (1000, 8), (5000, 16), (20_000, 32), (10**6, 32)]
)
def test_the_batch_grows_late(examples: int, batch: int) -> None:
    assert auto(examples).hyperparameters.batch_size == batch


@pytest.mark.parametrize(
    ("architecture", "hidden", "rate"),
    [
        ("LlamaForCausalLM", 4096, 2.86e-4),
        ("LlamaForCausalLM", 2000, 5e-4),
        ("LlamaForCausalLM", 192, 3.12e-3),
        ("MistralForCausalLM", 4096, 2.86e-4),
        ("Qwen3ForCausalLM", 4096, 4.73e-4),
        ("Gemma3ForCausalLM", 4096, 2.86e-4),
        ("Gemma3ForCausalLM", 640, 5.46e-4),
    ],
)
def test_the_learning_rate_falls_with_the_hidden_size(architecture: str, hidden: int, rate: float) -> None:
    found, rule = base_learning_rate(base(architecture, hidden))
    assert found == pytest.approx(rate, rel=5e-3)
    assert str(hidden) in rule


def test_short_runs_get_a_higher_rate() -> None:
    short, longer = auto(10, n_epochs=9).hyperparameters, auto(10, n_epochs=10).hyperparameters
    assert (short.learning_rate_multiplier, longer.learning_rate_multiplier) == (1.5, 1.0)
    assert short.learning_rate == pytest.approx(1.5 * longer.learning_rate)


@pytest.mark.parametrize(
    ("size", "parameters", "rank"),
    [
        (10_000, 8_000_000_000, 16),
        (200_000_000, 8_000_000_000, 16),
        (300_000_000, 8_000_000_000, 32),
        (10**9, None, 16),
    ],
)
def test_the_rank_grows_with_the_tokens(size: int, parameters: int | None, rank: int) -> None:
    assert auto(1000, size, base(parameters=parameters)).hyperparameters.lora_rank == rank


def test_the_rank_stops_at_what_a_replica_serves() -> None:
    assert auto(1000, 10**12).hyperparameters.lora_rank == 64


@pytest.mark.parametrize(("most", "rank"), [(63, 32), (32, 32), (8, 8)])
def test_no_rank_is_larger_than_what_this_service_serves(most: int, rank: int) -> None:
    dataset = Dataset(1000, 10**12)
    resolved = resolve(RequestedHyperparameters(), base(), dataset, "supervised", max_rank=most)
    assert resolved.hyperparameters.lora_rank == rank
    assert str(rank) in resolved.rules["lora_rank"]
    with pytest.raises(InvalidRequest, match=f"more than rank {most}") as refused:
        resolve(RequestedHyperparameters(lora_rank=most + 1), base(), dataset, "supervised", max_rank=most)
    assert (refused.value.code, refused.value.param) == ("rank_too_large", "lora_rank")


@pytest.mark.parametrize(("rank", "alpha"), [(8, 513), (8, 1024), (1, 64.5), (None, 1025)])
def test_an_alpha_whose_adapter_no_replica_would_serve_is_refused(rank: int | None, alpha: float) -> None:
    with pytest.raises(InvalidRequest, match="at most 64 times their rank") as refused:
        auto(10, lora_rank=rank, lora_alpha=alpha)
    assert (refused.value.code, refused.value.param) == ("alpha_too_large", "lora_alpha")


@pytest.mark.parametrize(("rank", "alpha"), [(8, 512), (1, 64), (1, None), (64, 4096), (None, 1024)])
def test_the_largest_alpha_that_is_served_is_taken(rank: int | None, alpha: float | None) -> None:
    hyperparameters = auto(10, lora_rank=rank, lora_alpha=alpha).hyperparameters
    check_scale(hyperparameters.lora_rank, hyperparameters.lora_alpha)


def test_sequences_are_cut_at_the_context() -> None:
    assert auto(10, of=base(context_length=1024)).hyperparameters.max_seq_length == 1024
    assert auto(10).hyperparameters.max_seq_length == 8192
    assert auto(10, max_seq_length=100_000).hyperparameters.max_seq_length == 100_000
    with pytest.raises(InvalidRequest, match="at most 131072"):
        auto(10, max_seq_length=131_073)


def test_an_absolute_learning_rate_implies_its_multiplier() -> None:
    resolved = auto(10, learning_rate=1e-4)
    assert resolved.hyperparameters.learning_rate == 1e-4
    assert resolved.hyperparameters.learning_rate_multiplier == pytest.approx(1e-4 / base_learning_rate(base())[0])
    assert resolved.rules["learning_rate"] == GIVEN
    assert resolved.rules["learning_rate_multiplier"] != GIVEN


def test_rate_and_multiplier_contradict_each_other() -> None:
    with pytest.raises(InvalidRequest, match="not both"):
        auto(10, learning_rate=1e-4, learning_rate_multiplier=2)


@pytest.mark.parametrize("multiplier", [1e-323, 1e9])
def test_a_multiplier_that_makes_no_usable_rate_is_refused(multiplier: float) -> None:
    with pytest.raises(InvalidRequest, match="learning_rate_multiplier"):
        auto(10, learning_rate_multiplier=multiplier)


def test_given_values_stay_and_say_so() -> None:
    values = {
        "n_epochs": 7,
        "batch_size": 3,
        "learning_rate_multiplier": 0.5,
        "lora_rank": 8,
        "lora_alpha": 16.0,
        "target_modules": ["q_proj", "v_proj"],
        "warmup_ratio": 0.0,
        "lr_scheduler": "cosine",
        "weight_decay": 0.1,
        "max_grad_norm": 2.0,
        "max_seq_length": 512,
        "packing": True,
    }
    resolved = auto(100, **values)
    shown = resolved.hyperparameters.model_dump(mode="json")
    assert {name: shown[name] for name in values} == values
    assert {name for name, rule in resolved.rules.items() if rule == GIVEN} == set(values)


@pytest.mark.parametrize(("examples", "multiplier"), [(10, 1.0), (34, 1.0), (33, 1.5)])
def test_preferences_take_a_tenth_of_the_supervised_rate(examples: int, multiplier: float) -> None:
    epochs = 10 if examples == 10 else 3
    supervised, preferences = auto(examples, n_epochs=epochs), dpo(examples, n_epochs=epochs)
    assert preferences.hyperparameters.learning_rate == pytest.approx(supervised.hyperparameters.learning_rate / 10)
    assert preferences.hyperparameters.learning_rate_multiplier == multiplier
    assert preferences.hyperparameters.beta == 0.1
    assert "tenth" in preferences.rules["learning_rate"]
    assert dpo(examples).hyperparameters.n_epochs == auto(examples).hyperparameters.n_epochs


def test_beta_and_packing_go_with_their_own_method() -> None:
    assert dpo(10, beta=2).hyperparameters.beta == 2
    assert dpo(10, beta=2).rules["beta"] == GIVEN
    assert dpo(10, packing=False).hyperparameters.packing is False
    assert auto(10).hyperparameters.beta is None
    assert auto(10).hyperparameters.packing is False
    with pytest.raises(InvalidRequest, match="'dpo'") as refused:
        auto(10, beta=0.1)
    assert refused.value.param == "beta"
    with pytest.raises(InvalidRequest, match="'dpo'") as refused:
        dpo(10, packing=True)
    assert refused.value.param == "packing"


def test_early_stopping_follows_the_validation_file() -> None:
    assert auto(10).hyperparameters.early_stopping is None
    assert auto(10).rules["early_stopping"] == "off, since there is no validation file"
    assert validated().hyperparameters.early_stopping == EarlyStopping(patience=2, min_delta=0.005)
    assert "2 evaluations" in validated().rules["early_stopping"]
    for wanted, resolved in (
        ({"patience": 3}, EarlyStopping(patience=3)),
        ({"patience": 5, "min_delta": 0}, EarlyStopping(patience=5, min_delta=0)),
        (True, EarlyStopping()),
        (False, None),
    ):
        found = validated(early_stopping=wanted)
        assert (found.hyperparameters.early_stopping, found.rules["early_stopping"]) == (resolved, GIVEN)


@pytest.mark.parametrize("wanted", [True, {"patience": 3}])
def test_early_stopping_needs_a_validation_file(wanted: object) -> None:
    with pytest.raises(InvalidRequest, match="no validation file") as refused:
        auto(10, early_stopping=wanted)
    assert (refused.value.code, refused.value.param) == ("missing_validation_file", "early_stopping")
    assert auto(10, early_stopping=False).hyperparameters.early_stopping is None


@given(
    examples=st.integers(1, 10**7),
    size=st.integers(1, 10**12),
    hidden=st.integers(1, 65_536),
    parameters=st.none() | st.integers(1, 10**13),
    context=st.integers(8, 10**7),
    architecture=st.sampled_from(["LlamaForCausalLM", "Qwen2ForCausalLM", "Unknown"]),
    method=st.sampled_from(["supervised", "dpo"]),
    validation=st.booleans(),
)
def test_whatever_the_base_and_the_file_every_value_is_usable_and_explained(
    examples: int,
    size: int,
    hidden: int,
    parameters: int | None,
    context: int,
    architecture: str,
    method: Method,
    validation: bool,
) -> None:
    of = base(architecture, hidden, parameters=parameters, context_length=context)
    resolved = _resolved(Dataset(examples, size, validation), method, of)
    assert set(resolved.rules) == set(Hyperparameters.model_fields)
    assert GIVEN not in resolved.rules.values()
    assert 0 < resolved.hyperparameters.learning_rate <= 1
