"""What `make bench-serving` calls met: each figure beside what is asked of it."""

from typing import Any

from tests.benchmarks.serving.verdicts import judged

SPEED = {"ratio": 0.97, "added_first_token_ms": 2.0, "of_the_gateway": {}}
FLOOD = {"refused": {"503": 7}, "refused_without_retry_after": 0, "wrong_answers": 0}


def missed(**found: Any) -> list[str]:
    return [name for name, figure in judged(found).items() if figure["met"] is False]


def test_the_whole_path_is_held_to_speed_first_token_and_texts() -> None:
    path = {"at_once_1": SPEED, "at_once_8": SPEED, "texts": {"different": 0}}
    assert missed(path=path) == []
    slow = SPEED | {"ratio": 0.94, "added_first_token_ms": 5.1}
    assert missed(path=path | {"at_once_8": slow, "texts": {"different": 1}}) == [
        "path.different_texts",
        "path.at_once_8.tokens_per_second_ratio",
        "path.at_once_8.added_first_token_ms",
    ]


def test_a_flood_must_be_refused_somewhere_and_the_newcomer_nowhere() -> None:
    newcomer = {"told_wait_p99_ms": 50.0, "seen_wait_p99_ms": 50.0, "failed": 0, "flood": FLOOD}
    assert missed(newcomer=newcomer) == []
    assert missed(newcomer=newcomer | {"flood": FLOOD | {"refused": {}}}) == ["fairness.flood_refused"]
    assert missed(newcomer=newcomer | {"failed": 1, "told_wait_p99_ms": 50.1, "seen_wait_p99_ms": 50.2}) == [
        "fairness.newcomer_told_wait_p99_ms",
        "fairness.newcomer_seen_wait_p99_ms",
        "fairness.newcomer_failed",
    ]


def test_two_floods_are_alike_in_tokens_and_have_nothing_but_right_answers() -> None:
    flood = {"wrong_answers": 0, "refused": {}}
    assert missed(alike={"apart": 0.1, "floods": [flood, flood]}) == []
    assert missed(alike={"apart": 0.11, "floods": [flood, {"wrong_answers": 1, "refused": {"503": 1}}]}) == [
        "fairness.alike_tokens_apart",
        "fairness.alike_wrong_answers",
        "fairness.alike_refused",
    ]


def test_what_is_only_reported_is_neither_met_nor_missed() -> None:
    run = {"adapters": 1, "popularity": "zipf", "wrong_answers": 0, "to_one_adapter": 0.1, "first_token_ms": {}}
    figures = judged({"adapters": [run]})
    assert figures["adapters.1.zipf.tokens_per_second_to_one"] == {"value": 0.1, "asked": None, "met": None}
    assert missed(adapters=[run | {"wrong_answers": 1}]) == ["adapters.wrong_answers"]
