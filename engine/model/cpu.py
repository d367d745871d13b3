"""Count the CPUs that this process may use. Imports the standard library only.

`os.sched_getaffinity` does not see a container's CPU quota. With a quota of 2 on a machine with 64
cores, 64 threads would be throttled most of the time.
"""

import os
from math import ceil
from pathlib import Path


def available_cpus(root: Path = Path("/")) -> int:
    """Return the number of CPUs that this process may use, at least 1.

    It is the smaller of the affinity mask and the cgroup's CPU quota, rounded up.

    Args:
        root: the directory that contains `proc` and `sys`; tests pass another one.
    """
    affinity = len(os.sched_getaffinity(0))
    return max(1, min([affinity, *(ceil(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> list[float]:
    """Return the quotas, in CPUs, of this process's cgroup and its ancestors (version 2 and 1)."""
    mount, v2, v1 = root / "sys/fs/cgroup", "/", "/"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if not controllers:
            v2 = group
        elif "cpu" in controllers.split(","):
            v1 = group
    # "QUOTA PERIOD" in microseconds, or "max PERIOD"
    quotas = [_read(path / "cpu.max") for path in _with_ancestors(mount, v2)]
    for path in _with_ancestors(mount / "cpu", v1):
        quota, period = (_read(path / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        quotas.append(f"{quota} {period}")  # the quota is -1 if there is none
    pairs = [quota.split() for quota in quotas]
    return [int(p[0]) / int(p[1]) for p in pairs if len(p) == 2 and p[0].isdigit()]


def _with_ancestors(mount: Path, group: str) -> list[Path]:
    """Return the directories of a cgroup and its ancestors, up to `mount` itself.

    In a container, `group` may be a path of the host, and `mount` the container's own cgroup.
    """
    own = mount / group.lstrip("/")
    return [path for path in (own, *own.parents) if path.is_relative_to(mount)]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
