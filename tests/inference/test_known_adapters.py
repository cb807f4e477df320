"""Which of the adapters that vLLM knows makes room for another one."""

from dataclasses import dataclass

from inference.known_adapters import LATE_SECONDS, KnownAdapters


def nobody(adapter: str) -> bool:
    return False


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def test_of_one_tenant_the_one_used_longest_ago() -> None:
    known = KnownAdapters(Clock())
    for name in ("a", "b", "c", "a"):
        known.use(name, "t")
    assert known.first_to_go(nobody) == ["b", "c", "a"]
    assert list(known.recent_first()) == ["a", "c", "b"]


def test_a_crowd_pushes_out_its_own() -> None:
    known = KnownAdapters(Clock())
    known.use("newcomer's", "newcomer")
    for number in range(5):
        known.use(f"crowd-{number}", "crowd")
    assert known.first_to_go(nobody) == [*(f"crowd-{number}" for number in range(5)), "newcomer's"]


def test_what_nobody_has_used_of_late_goes_before_a_crowd_at_work() -> None:
    clock = Clock()
    known = KnownAdapters(clock)
    known.use("left", "newcomer")
    known.use("left too", "crowd")
    clock.now += LATE_SECONDS
    for number in range(3):
        known.use(f"crowd-{number}", "crowd")
    known.use("busy", "newcomer")
    assert known.first_to_go(nobody) == ["left", "left too", "crowd-0", "crowd-1", "crowd-2", "busy"]


def test_an_adapter_is_of_the_share_of_who_used_it_last() -> None:
    known = KnownAdapters(Clock())
    known.use("shared", "small")
    known.use("own", "large")
    known.use("shared", "large")
    known.use("small's", "small")
    assert known.first_to_go(nobody) == ["own", "shared", "small's"]
    known.forget("own")
    assert "own" not in known
    assert len(known) == 2


def test_what_requests_wait_for_goes_after_its_tenants_others_and_before_another_tenants_one() -> None:
    clock = Clock()
    known = KnownAdapters(clock)
    known.use("waited for", "crowd")
    clock.now += LATE_SECONDS
    known.use("newcomer's", "newcomer")
    known.use("crowd's", "crowd")
    assert known.first_to_go("waited for".__eq__) == ["crowd's", "waited for", "newcomer's"]
