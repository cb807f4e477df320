"""Placement: the same adapter to the same replica, few moves when one goes, no replica with far more than its share."""

import contextlib
from collections import Counter

import pytest

from service.errors import Unavailable
from service.gateway.place import Placement
from service.replicas.membership import Replica

ADAPTERS = [f"adapter-{number}" for number in range(300)]


class Members:
    """A list of replicas, as Membership gives it."""

    def __init__(self, count: int) -> None:
        self.replicas = [Replica(f"r{number}", f"http://r{number}", "key", "base") for number in range(count)]
        self.suspects: set[str] = set()

    def ready(self, base: str) -> tuple[Replica, ...]:
        return tuple(replica for replica in self.replicas if replica.base_model == base)

    def is_suspect(self, replica: Replica) -> bool:
        return replica.id in self.suspects


def placed(members: Members) -> dict[str, str]:
    placement = Placement(members)  # type: ignore[arg-type]
    return {adapter: placement.choose("base", adapter).id for adapter in ADAPTERS}


def test_gateways_agree_and_only_the_adapters_of_a_lost_replica_move() -> None:
    members = Members(4)
    before = placed(members)
    assert before == placed(members)
    assert min(Counter(before.values()).values()) > len(ADAPTERS) / 4 / 2
    members.replicas.pop(1)
    after = placed(members)
    assert {adapter for adapter in ADAPTERS if before[adapter] != after[adapter]} == {
        adapter for adapter in ADAPTERS if before[adapter] == "r1"
    }


def test_one_hot_adapter_spills_before_its_replica_has_far_more_than_its_share() -> None:
    placement = Placement(Members(4))  # type: ignore[arg-type]
    load: Counter[str] = Counter()
    with contextlib.ExitStack() as requests:
        for _ in range(100):
            replica = placement.choose("base", "hot")
            requests.enter_context(placement.occupied(replica))
            load[replica.id] += 1
        assert max(load.values()) <= 1.25 * 101 / 4 + 1
    home = placement.choose("base", "hot").id
    assert home == max(load, key=lambda replica: load[replica])


def test_suspect_and_tried_replicas_come_last_but_do_come() -> None:
    members = Members(2)
    placement = Placement(members)  # type: ignore[arg-type]
    home = placement.choose("base", "a")
    (other,) = {replica.id for replica in members.replicas} - {home.id}
    assert placement.choose("base", "a", [home.id]).id == other
    members.suspects = {home.id}
    assert placement.choose("base", "a").id == other
    members.suspects = {home.id, other}
    assert placement.choose("base", "a").id == home.id


def test_without_a_replica_of_the_base_it_says_so() -> None:
    with pytest.raises(Unavailable) as caught:
        Placement(Members(2)).choose("another", "a")  # type: ignore[arg-type]
    assert caught.value.code == "no_replica"
