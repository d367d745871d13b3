"""The number of CPUs respects both the affinity mask and the container's quota."""

import os
from pathlib import Path

import pytest

from kwise.engine.model.cpu import available_cpus


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def _files(root: Path, contents: dict[str, str]) -> Path:
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


V2 = {"proc/self/cgroup": "0::/\n"}
NESTED = {"proc/self/cgroup": "0::/pods/one\n"}
CPU_MAX = "sys/fs/cgroup/cpu.max"
V1_QUOTA, V1_PERIOD = "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "sys/fs/cgroup/cpu/cpu.cfs_period_us"

V1_OF_4 = {V1_QUOTA: "400000\n", V1_PERIOD: "100000\n"}
SERVICE_V1 = {
    "proc/self/cgroup": "3:cpuset:/\n2:cpu,cpuacct:/system.slice/kwise\n0::/system.slice/kwise\n",
    "sys/fs/cgroup/cpu/system.slice/kwise/cpu.cfs_quota_us": "150000\n",
    "sys/fs/cgroup/cpu/system.slice/kwise/cpu.cfs_period_us": "100000\n",
    V1_QUOTA: "-1\n",
    V1_PERIOD: "100000\n",
}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        (V2 | {CPU_MAX: "max 100000\n"}, 8),
        (V2 | {CPU_MAX: "200000 100000\n"}, 2),
        (V2 | {CPU_MAX: "250000 100000\n"}, 3),
        (V2 | {CPU_MAX: "10000 100000\n"}, 1),
        (V2 | {CPU_MAX: "6400000 100000\n"}, 8),
        (NESTED | {CPU_MAX: "max 100000\n", "sys/fs/cgroup/pods/one/cpu.max": "300000 100000"}, 3),
        (NESTED | {"sys/fs/cgroup/pods/cpu.max": "150000 50000\n"}, 3),
        ({"proc/self/cgroup": "4:cpu:/\n", V1_QUOTA: "400000\n", V1_PERIOD: "100000\n"}, 4),
        ({"proc/self/cgroup": "4:cpu:/\n", V1_QUOTA: "-1\n", V1_PERIOD: "100000\n"}, 8),
        (SERVICE_V1, 2),
        (SERVICE_V1 | {V1_QUOTA: "100000\n", V1_PERIOD: "100000\n"}, 1),
        # A container that sees its host's paths, and its own cgroup at the mount.
        (SERVICE_V1 | {"proc/self/cgroup": "2:cpu,cpuacct:/docker/1\n"} | V1_OF_4, 4),
    ],
)
def test_the_quota_is_rounded_up_and_at_least_one(
    tmp_path: Path, files: dict[str, str], expected: int
) -> None:
    assert available_cpus(_files(tmp_path, files)) == expected


def test_the_affinity_mask_counts_even_below_the_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5})
    assert available_cpus(_files(tmp_path, V2 | {CPU_MAX: "400000 100000\n"})) == 1


def test_this_machine_has_a_cpu() -> None:
    assert available_cpus() >= 1
