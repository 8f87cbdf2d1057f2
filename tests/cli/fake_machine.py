# SPDX-License-Identifier: MIT
"""Machines that are made up for doctor: a healthy server, and changes to it.

Each case is that server with one thing changed. The check in question has to notice,
with cause and a fix that fits this machine; no other may change its verdict.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from dmaplane import doctor

GIB = 1 << 30
RELEASE = "6.12.0-test"
NODE = "/sys/devices/system/node"
CARD = "/sys/bus/pci/devices/0000:3b:00.0"
RXE = "/sys/class/infiniband/mlx5_0"

DOCKER = {"/.dockerenv": ""}
POD = {"/proc/self/environ": "KUBERNETES_SERVICE_HOST=10.0.0.1\0"}

# A server on which every check is "ok".
HEALTHY: dict[str, str] = {
    "/proc/sys/kernel/osrelease": RELEASE,
    "/proc/sys/vm/nr_hugepages": "512",
    "/proc/sys/vm/nr_overcommit_hugepages": "0",
    "/proc/sys/kernel/numa_balancing": "0",
    "/proc/meminfo": "MemTotal: 268435456 kB\nHugePages_Total: 512\nHugePages_Free: 500\n"
    "Hugepagesize: 2048 kB\n",
    "/proc/self/status": "Seccomp:\t0\nMems_allowed_list:\t0-1\n",
    "/proc/self/cgroup": "0::/user.slice\n",
    "/proc/self/environ": "HOME=/root\0",
    "/proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module  570.86.15  x\n",
    "/sys/fs/cgroup/user.slice/memory.max": "max",
    "/sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never",
    "/sys/kernel/mm/transparent_hugepage/shmem_enabled": "always within_size [advise] never",
    f"{NODE}/node0/meminfo": "Node 0 MemTotal: 134217728 kB\n",
    f"{NODE}/node1/meminfo": "Node 1 MemTotal: 134217728 kB\n",
    f"{CARD}/class": "0x030200",
    f"{CARD}/vendor": "0x10de",
    f"{RXE}/device/vendor": "0x15b3",
    f"{RXE}/ports/1/state": "4: ACTIVE",
    f"{RXE}/ports/1/link_layer": "Ethernet",
    f"{RXE}/ports/1/gids/0": "fe80:0000:0000:0000:5054:00ff:fe77:0001",
    f"{RXE}/ports/1/gids/1": "0000:0000:0000:0000:0000:ffff:c000:0201",
    f"{RXE}/ports/1/gids/2": "0000:0000:0000:0000:0000:0000:0000:0000",
    f"{RXE}/ports/1/gid_attrs/types/0": "RoCE v2",
    f"{RXE}/ports/1/gid_attrs/types/1": "RoCE v2",
    f"{RXE}/ports/1/gid_attrs/ndevs/0": "ens1",
    f"{RXE}/ports/1/gid_attrs/ndevs/1": "ens1",
    f"{RXE}/device/net/ens1/mtu": "9000",
    "/sys/class/net/ens1/mtu": "9000",
    "/sys/class/infiniband_verbs/abi_version": "6",
    "/sys/class/misc/rdma_cm/abi_version": "4",
    "/sys/module/ib_core/parameters/netns_mode": "Y",
    "/etc/libibverbs.d/mlx5.driver": "driver mlx5",
    "/sys/module/nvidia_peermem/refcnt": "0",
    "/sys/module/dmaplane/refcnt": "0",
    f"/lib/modules/{RELEASE}/modules.dep": "kernel/drivers/dma-buf/udmabuf.ko.xz:\n"
    "extra/dmaplane.ko: kernel/drivers/infiniband/core/ib_core.ko\n",
    "/etc/os-release": 'PRETTY_NAME="Test Linux 1"\n',
    "/dev/shm/.keep": "",
    "/dev/dmaplane": "",
    "/dev/udmabuf": "",
    "/dev/dma_heap/system": "",
    "/dev/infiniband/uverbs0": "",
    "/dev/infiniband/rdma_cm": "",
    "/dev/nvidia0": "",
}


WORKS = doctor.Trial(True, "opened")


@dataclasses.dataclass
class Calls:
    """What the system calls of a made-up machine answer."""

    user_id: int = 1000
    user_name: str = "alice"
    device_group: str | None = "dmaplane"
    architecture: str = "x86_64"
    memlock_limit_bytes: int = -1
    lock_errno: int = 0
    place_errnos: tuple[int, int] | None = (0, 0)
    open_files: tuple[int, int] = (65536, 65536)
    shm_bytes: int = 64 * GIB
    embedded: doctor.Trial = WORKS
    kernel: doctor.Trial = WORKS
    python: tuple[int, int, int] = (3, 12, 1)
    packages: tuple[str, ...] = ("numpy", "rich", "typer", "dmaplane", "cuda-bindings")
    numpy: str = "2.1.0"
    closed: tuple[str, ...] = ()
    verbs_missing: str = ""
    libraries: tuple[str, ...] = ("libibverbs.so.1", "librdmacm.so.1", "libcuda.so.1")
    cuda: doctor.Trial = WORKS


class FakeMachine(doctor.Machine):
    """A machine of files below a folder and answers from a table."""

    def __init__(self, root: pathlib.Path, files: dict[str, str], calls: Calls) -> None:
        super().__init__(root)
        self.calls = calls
        for name, text in files.items():
            path = self.path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def usable(self, name: str) -> bool:
        return self.exists(name) and name not in self.calls.closed

    def user_id(self) -> int:
        return self.calls.user_id

    def user_name(self) -> str:
        return self.calls.user_name

    def group_of(self, name: str) -> str | None:
        return self.calls.device_group

    def architecture(self) -> str:
        return self.calls.architecture

    def python_version(self) -> tuple[int, int, int]:
        return self.calls.python

    def package_version(self, package: str) -> str | None:
        if package not in self.calls.packages:
            return None
        return self.calls.numpy if package == "numpy" else "1.0"

    def open_library(self, name: str) -> str:
        return "" if name in self.calls.libraries else f"{name}: cannot open shared object file"

    def verbs_missing(self) -> str:
        return self.calls.verbs_missing

    def try_cuda(self) -> doctor.Trial:
        return self.calls.cuda

    def memlock_limit_bytes(self) -> int:
        return self.calls.memlock_limit_bytes

    def open_files_limit(self) -> tuple[int, int]:
        return self.calls.open_files

    def filesystem_bytes(self, name: str) -> tuple[int, int]:
        return self.calls.shm_bytes, self.calls.shm_bytes

    def lock_memory(self, length_bytes: int) -> int:
        assert length_bytes == 64 << 20
        return self.calls.lock_errno

    def place_memory(self) -> tuple[int, int] | None:
        return self.calls.place_errnos

    def try_embedded(self) -> doctor.Trial:
        return self.calls.embedded

    def try_kernel(self) -> doctor.Trial:
        return self.calls.kernel


@dataclasses.dataclass(frozen=True)
class Case:
    """One change to the healthy server and what has to be said about it."""

    name: str
    check: str
    verdict: str
    cause: str  # a part of it
    fix: str  # a part of it
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    gone: tuple[str, ...] = ()  # files and folders
    calls: dict[str, Any] = dataclasses.field(default_factory=dict)
    others: tuple[str, ...] = ()  # other checks that may change with it


def examine(root: pathlib.Path, case: Case | None = None) -> doctor.Report:
    files = {**HEALTHY, **(case.files if case else {})}
    if case:
        files = {
            name: text
            for name, text in files.items()
            if not any(name == gone or name.startswith(gone + "/") for gone in case.gone)
        }
    return doctor.examine(FakeMachine(root, files, Calls(**(case.calls if case else {}))))


def check(root: pathlib.Path, case: Case) -> None:
    """What has to be said of the case is said, and nothing of anything else."""
    report = examine(root, case)
    result = report.result(case.check)
    assert result.verdict == case.verdict, result
    assert case.cause in result.cause
    assert case.fix in result.fix
    changed = {
        result.name
        for result in report.checks
        if result.verdict != "ok" and result.name not in (case.check, *case.others)
    }
    assert changed == set()
