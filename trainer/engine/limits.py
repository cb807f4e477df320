"""How much memory is left beside the base: asked once, after it is loaded.

Owns where that is written. On an accelerator it is the device's own; else the least of what the machine has available
and what the control groups above this process still allow, version 1 or 2. What is done with it is `memory`'s.
"""

from collections.abc import Iterator
from pathlib import Path

import torch

HOST_PART = 0.7
"""Others on the machine grow too, and there the kernel ends a process where an accelerator raises an error."""

DEVICE_PART = 0.9
"""An allocator cannot use every gap."""

CONTROLLERS = {
    "": ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "memory": ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""By the name in /proc/self/cgroup, which is empty in version 2: mount, limit, use, and what of it is given back."""


def room(device: torch.device) -> int:
    """Bytes that jobs may take."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int((free + cached) * DEVICE_PART)
    return int(host_room() * HOST_PART)


def host_room(root: Path = Path("/")) -> int:
    """Bytes that this process could take before the machine or a control group has no more."""
    fields = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    return max(0, min([available, *_groups(root)]))


def _groups(root: Path) -> Iterator[int]:
    """What each limited group that this process is in has left."""
    file = root / "proc/self/cgroup"
    for line in file.read_text().splitlines() if file.exists() else ():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            if name in CONTROLLERS:
                mount, *files = CONTROLLERS[name]
                # Inside a container the path may be the host's, which is not mounted here; its top is this group then.
                yield from _left(root / mount, root / mount / path.lstrip("/"), *files)


def _left(top: Path, group: Path, limit: str, used: str, idle: str) -> Iterator[int]:
    for folder in (group, *group.parents):
        if (folder / limit).exists():
            written = (folder / limit).read_text().strip()
            if written != "max":
                counters = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                yield int(written) - int((folder / used).read_text()) + int(counters.get(idle, 0))
        if folder == top:
            return
