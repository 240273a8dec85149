"""Files by which Linux describes control groups, of several machines."""

from __future__ import annotations

from pathlib import Path

V1 = "4:cpuset:/\n3:memory:/docker/ab\n2:cpu,cpuacct:/docker/ab\n1:name=systemd:/docker/ab\n"
MACHINES = [  # contents of /proc/self/cgroup, other files, the quota, and CPUs of 64
    ("0::/\n", {"sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2.0, 2),
    ("0::/\n", {"sys/fs/cgroup/cpu.max": "max 100000\n"}, None, 64),
    ("0::/\n", {"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5, 2),
    ("0::/\n", {"sys/fs/cgroup/cpu.max": "10000 100000\n"}, 0.1, 1),
    ("0::/\n", {"sys/fs/cgroup/cpu.max": "9900000 100000\n"}, 99.0, 64),
    # the group above is tighter; a limit above counts too
    ("0::/kube/pod/a\n", {"sys/fs/cgroup/kube/pod/a/cpu.max": "800000 100000\n",
                          "sys/fs/cgroup/kube/pod/cpu.max": "400000 100000\n",
                          "sys/fs/cgroup/kube/cpu.max": "max 100000\n"}, 4.0, 4),
    (V1, {"sys/fs/cgroup/cpu,cpuacct/docker/ab/cpu.cfs_quota_us": "300000\n",
          "sys/fs/cgroup/cpu,cpuacct/docker/ab/cpu.cfs_period_us": "100000\n"}, 3.0, 3),
    (V1, {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
          "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, None, 64),
    # a container sees the host's path, and its own group as the root
    (V1, {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
          "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 0.5, 1),
    (V1 + "0::/\n", {"sys/fs/cgroup/unified/cpu.max": "500000 100000\n"}, 5.0, 5),
    ("0::/\n", {"sys/fs/cgroup/cpu.max": "nonsense\n"}, None, 64),
    ("0::/\n", {}, None, 64),
]  # fmt: skip


def make_machine(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    """Write the files below a root."""
    for name, text in {"proc/self/cgroup": cgroup, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root
