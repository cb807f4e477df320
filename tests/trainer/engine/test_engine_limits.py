"""How much memory a host has left: the machine's, or a control group's of either version, whichever is less."""

from pathlib import Path

import pytest

from trainer.engine.limits import host_room

GIB = 1 << 30
NO_LIMIT = 9223372036854771712


def machine(root: Path, groups: str | None, available_kib: int = 8 * GIB // 1024) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(
        f"MemTotal:       16777216 kB\nMemFree:         1048576 kB\nMemAvailable:   {available_kib} kB\n"
    )
    if groups is not None:
        (root / "proc/self/cgroup").write_text(groups)
    return root


def version_2(folder: Path, limit: str, used: int, idle: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {idle}\n")


def version_1(folder: Path, limit: int, used: int, idle: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"cache 5\ninactive_file 1\ntotal_inactive_file {idle}\n")


def test_without_control_groups_it_is_what_the_machine_has_available(tmp_path: Path) -> None:
    assert host_room(machine(tmp_path, None)) == 8 * GIB


def test_a_group_of_version_2_and_any_above_it_may_allow_less(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/pods/trainer\n")
    top = root / "sys/fs/cgroup"
    version_2(top / "pods/trainer", "max", 0)
    version_2(top / "pods", str(4 * GIB), used=2 * GIB, idle=GIB)
    assert host_room(root) == 3 * GIB
    version_2(top / "pods/trainer", str(2 * GIB), used=GIB)
    assert host_room(root) == GIB


def test_inside_a_container_the_group_is_at_the_top(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/docker/of-the-host\n")
    version_2(root / "sys/fs/cgroup", str(3 * GIB), used=GIB)
    assert host_room(root) == 2 * GIB


def test_version_1_names_its_controllers(tmp_path: Path) -> None:
    root = machine(tmp_path, "9:cpu,cpuacct:/x\n4:memory:/trainer\n0::/\n")
    top = root / "sys/fs/cgroup/memory"
    version_1(top, NO_LIMIT, used=5 * GIB)
    version_1(top / "trainer", 5 * GIB, used=2 * GIB, idle=GIB)
    assert host_room(root) == 4 * GIB


def test_a_group_that_is_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/\n")
    version_2(root / "sys/fs/cgroup", str(GIB), used=2 * GIB)
    assert host_room(root) == 0


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="needs Linux")
def test_this_machine_has_some() -> None:
    assert host_room() > 64 << 20
