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
    mount, quotas = root / "sys/fs/cgroup", []
    lines = _read(root / "proc/self/cgroup").splitlines()
    own = next((line[len("0::/") :] for line in lines if line.startswith("0::/")), "")
    for group in (mount / own, *(mount / own).parents):
        quotas.append(_read(group / "cpu.max"))  # "QUOTA PERIOD" in microseconds, or "max PERIOD"
        if group == mount:
            break
    v1 = mount / "cpu"
    quotas.append(f"{_read(v1 / 'cpu.cfs_quota_us')} {_read(v1 / 'cpu.cfs_period_us')}")  # -1: none
    pairs = [quota.split() for quota in quotas]
    return [int(p[0]) / int(p[1]) for p in pairs if len(p) == 2 and p[0].isdigit()]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
