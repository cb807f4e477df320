"""Placement: the same adapter to the same replica, few moves when one goes, no replica with far more than its share."""

import contextlib
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import Unavailable
from service.gateway import heat
from service.gateway.heat import Heat
from service.gateway.place import Placement
from service.replicas.membership import Replica

ADAPTERS = [f"adapter-{number}" for number in range(300)]
SLOTS = 8


class Members:
    """A list of replicas, as Membership gives it."""

    def __init__(self, names: list[str]) -> None:
        self.replicas = [Replica(name, f"http://{name}", "key", "base", SLOTS) for name in names]
        self.suspects: set[str] = set()

    def ready(self, base: str) -> tuple[Replica, ...]:
        return tuple(replica for replica in self.replicas if replica.base_model == base)

    def is_suspect(self, replica: Replica) -> bool:
        return replica.id in self.suspects

    def without(self, name: str) -> "Members":
        return Members([replica.id for replica in self.replicas if replica.id != name])


def fleet(count: int) -> Members:
    return Members([f"r{number}" for number in range(count)])


def make(members: Members, share: int = 1000) -> Placement:
    return Placement(members, Heat(share))  # type: ignore[arg-type]


def placed(members: Members) -> dict[str, str]:
    placement = make(members)
    return {adapter: placement.choose("base", adapter).id for adapter in ADAPTERS}


@settings(max_examples=40, deadline=None)
@given(st.sets(st.text("abcdefgh-0123456789", min_size=1, max_size=12), min_size=2, max_size=12), st.data())
def test_in_any_fleet_only_the_adapters_of_a_lost_or_suspect_replica_move(names: set[str], data: st.DataObject) -> None:
    members = Members(sorted(names))
    lost = data.draw(st.sampled_from(sorted(names)))
    before = placed(members)
    assert before == placed(Members(sorted(names, reverse=True)))
    away = members.without(lost)
    suspected = Members(sorted(names))
    suspected.suspects = {lost}
    for after in (placed(away), placed(suspected)):
        assert {adapter for adapter in ADAPTERS if before[adapter] != after[adapter]} == {
            adapter for adapter in ADAPTERS if before[adapter] == lost
        }


def test_adapters_are_spread_over_the_fleet() -> None:
    assert min(Counter(placed(fleet(4)).values()).values()) > len(ADAPTERS) / 4 / 2


def test_one_hot_adapter_spills_before_its_replica_has_far_more_than_its_share() -> None:
    placement = make(fleet(4))
    load: Counter[str] = Counter()
    with contextlib.ExitStack() as requests:
        for _ in range(100):
            replica = placement.choose("base", "hot")
            requests.enter_context(placement.occupied(replica, "hot"))
            load[replica.id] += 1
        assert max(load.values()) <= 1.25 * 101 / 4 + 1
    home = placement.choose("base", "hot").id
    assert home == max(load, key=lambda replica: load[replica])


def test_nobody_is_sent_to_a_cold_replica_while_its_own_has_slots_for_all() -> None:
    placement = make(fleet(4))
    with contextlib.ExitStack() as requests:
        homes = set()
        for _ in range(SLOTS):
            replica = placement.choose("base", "a")
            requests.enter_context(placement.occupied(replica, "a"))
            homes.add(replica.id)
    assert len(homes) == 1


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 8), st.lists(st.integers(0, 60), min_size=1, max_size=400))
def test_no_replica_of_any_fleet_goes_over_its_bound(count: int, asked: list[int]) -> None:
    placement = make(fleet(count))
    load: Counter[str] = Counter()
    with contextlib.ExitStack() as requests:
        for number, adapter in enumerate(asked):
            replica = placement.choose("base", str(adapter))
            assert load[replica.id] < max(SLOTS, 1.25 * (number + 1) / count + 1)
            requests.enter_context(placement.occupied(replica, str(adapter)))
            load[replica.id] += 1


def test_suspect_and_tried_replicas_come_last_but_do_come() -> None:
    members = fleet(2)
    placement = make(members)
    home = placement.choose("base", "a")
    (other,) = {replica.id for replica in members.replicas} - {home.id}
    assert placement.choose("base", "a", [home.id]).id == other
    members.suspects = {home.id}
    assert placement.choose("base", "a").id == other
    members.suspects = {home.id, other}
    assert placement.choose("base", "a").id == home.id


def test_without_a_replica_of_the_base_it_says_so() -> None:
    with pytest.raises(Unavailable) as caught:
        make(fleet(2)).choose("another", "a")
    assert caught.value.code == "no_replica"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(heat, "time", made)
    return made


def test_a_hot_adapter_gets_more_replicas_after_a_while_and_loses_them_slowly(clock: Clock) -> None:
    warmth = Heat(share=4)
    for _ in range(9):
        warmth.begin("hot")
    assert warmth.width("hot") == 1
    clock.now += heat.GROW_SECONDS
    assert warmth.width("hot") == 2
    clock.now += heat.GROW_SECONDS
    assert warmth.width("hot") == 3
    clock.now += 100 * heat.GROW_SECONDS
    assert warmth.width("hot") == 3, "nine are not more than three replicas carry"
    for _ in range(9):
        warmth.end("hot")
    clock.now += heat.SHRINK_SECONDS - 1
    assert warmth.width("hot") == 3
    clock.now += 1
    assert warmth.width("hot") == 2
    clock.now += 5 * heat.SHRINK_SECONDS
    assert warmth.width("hot") == 1


def test_a_short_burst_and_a_short_pause_change_nothing(clock: Clock) -> None:
    warmth = Heat(share=1)
    for _ in range(20):
        warmth.begin("a")
        warmth.begin("a")
        clock.now += heat.GROW_SECONDS / 2
        warmth.end("a")
        warmth.end("a")
        clock.now += 0.1
    assert warmth.width("a") == 1
    warmth.begin("a")
    warmth.begin("a")
    clock.now += heat.GROW_SECONDS
    assert warmth.width("a") == 2
    for _ in range(20):
        warmth.end("a")
        warmth.end("a")
        clock.now += heat.SHRINK_SECONDS / 2
        warmth.begin("a")
        warmth.begin("a")
    assert warmth.width("a") == 2


def test_what_is_no_longer_asked_for_is_forgotten(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heat, "MANY", 10)
    warmth = Heat(share=1)
    for number in range(100):
        for _ in range(2):
            warmth.begin(str(number))
        clock.now += heat.GROW_SECONDS
        for _ in range(2):
            warmth.end(str(number))
        clock.now += heat.SHRINK_SECONDS
    assert len(warmth._adapters) <= 12


def test_within_the_allowed_replicas_the_idler_and_then_the_holder_is_preferred(clock: Clock) -> None:
    members = fleet(3)
    warmth = Heat(share=1)
    placement = Placement(members, warmth)  # type: ignore[arg-type]
    home = placement.choose("base", "a").id
    second = make(members.without(home)).choose("base", "a").id
    third = ({"r0", "r1", "r2"} - {home, second}).pop()
    members.replicas = [
        Replica(each.id, each.url, "key", "base", SLOTS, frozenset({"a"} if each.id in (second, third) else ()))
        for each in members.replicas
    ]
    assert placement.choose("base", "a").id == home, "who holds it does not move an adapter from its home"
    by_id = {each.id: each for each in members.replicas}
    with placement.occupied(by_id[home], "a"), placement.occupied(by_id[home], "a"):
        clock.now += heat.GROW_SECONDS
        assert placement.choose("base", "a").id == second
    assert placement.choose("base", "a").id == second, "of two idle ones, the one that holds it"
