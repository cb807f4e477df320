"""Deficit round robin: equal shares of what is really used, no memory of those who left, no endless credit."""

from collections import Counter

from inference.ring import MOST_QUANTA, Ring


def serve(ring: Ring[str], costs: dict[str, float], rounds: int) -> Counter[str]:
    spent: Counter[str] = Counter()
    for _ in range(rounds):
        name = ring.pick(costs)
        ring.charge(name, costs[name])
        spent[name] += int(costs[name])
    return spent


def test_shares_are_equal_whatever_a_turn_costs() -> None:
    ring: Ring[str] = Ring(100)
    for name in "abc":
        ring.join(name)
    spent = serve(ring, {"a": 10, "b": 130, "c": 700}, 4000)
    assert max(spent.values()) <= min(spent.values()) + 700 + 100


def test_what_was_charged_too_much_comes_back() -> None:
    ring: Ring[str] = Ring(100)
    ring.join("a")
    ring.join("b")
    used: Counter[str] = Counter()
    for _ in range(2000):
        name = ring.pick("ab")
        ring.charge(name, 300)
        real = 30 if name == "a" else 300
        ring.charge(name, real - 300)
        used[name] += real
    assert abs(used["a"] - used["b"]) <= 600


def test_newcomer_goes_before_those_in_debt() -> None:
    ring: Ring[str] = Ring(100)
    ring.join("flood")
    for _ in range(5):
        ring.charge(ring.pick(["flood"]), 1000)
    ring.join("new")
    assert ring.pick(["flood", "new"]) == "new"


def test_who_could_not_be_served_saves_up_only_so_much() -> None:
    ring: Ring[str] = Ring(100)
    ring.join("blocked")
    ring.join("busy")
    for _ in range(1000):
        ring.charge(ring.pick(["busy"]), 100)
    spent = serve(ring, {"blocked": 100, "busy": 100}, 2 * MOST_QUANTA)
    assert spent["blocked"] <= 100 * (MOST_QUANTA + MOST_QUANTA // 2 + 1)
    assert spent["busy"] > 0


def test_leaving_forgets() -> None:
    ring: Ring[str] = Ring(100)
    ring.join("a")
    ring.join("b")
    ring.charge("a", 10_000)
    ring.leave("a")
    ring.charge("a", 10_000)
    ring.join("a")
    assert {ring.pick("ab"), ring.pick("a")} == {"b", "a"}
