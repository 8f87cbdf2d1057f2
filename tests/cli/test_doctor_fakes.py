# SPDX-License-Identifier: MIT
"""Doctor in front of machines that are broken in known ways; the planes have their own file."""

from __future__ import annotations

import dataclasses
import errno
import pathlib
import sys

import pytest

from dmaplane import doctor

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from fake_machine import (
    CARD,
    DOCKER,
    GIB,
    HEALTHY,
    NODE,
    POD,
    RELEASE,
    Calls,
    Case,
    FakeMachine,
    check,
    examine,
)

RDMA_LIBRARIES = ("libibverbs.so.1", "librdmacm.so.1")

CASES = (
    Case(
        "library missing",
        "embedded-plane",
        "lack",
        "cannot open shared object",
        "pip install --force-reinstall dmaplane",
        calls={"embedded": doctor.Trial(False, "OSError: cannot open shared object file")},
    ),
    Case(
        "library missing in a checkout",
        "embedded-plane",
        "lack",
        "cannot open shared object",
        "make demo",
        calls={
            "embedded": doctor.Trial(False, "OSError: cannot open shared object file"),
            "packages": ("numpy", "rich", "typer", "cuda-bindings"),
        },
    ),
    Case(
        "old Python",
        "python",
        "lack",
        "3.10 or newer",
        "sudo apt-get install python3.11",
        calls={"python": (3, 9, 2)},
    ),
    Case(
        "old Python on Fedora",
        "python",
        "lack",
        "3.10 or newer",
        "sudo dnf install python3.11",
        files={"/usr/bin/dnf": ""},
        calls={"python": (3, 9, 2)},
    ),
    Case(
        "typer missing",
        "python",
        "lack",
        "without its dependencies",
        "pip install typer",
        calls={"packages": ("numpy", "rich", "dmaplane", "cuda-bindings")},
    ),
    Case("old numpy", "python", "lack", "1.23", "'numpy>=1.23'", calls={"numpy": "1.21.5"}),
    Case(
        "ancient kernel",
        "kernel",
        "lack",
        "4.14",
        "5.10",
        files={
            "/proc/sys/kernel/osrelease": "3.10.0-1160.el7",
            "/lib/modules/3.10.0-1160.el7/modules.dep": "extra/dmaplane.ko:\n",
        },
    ),
    Case(
        "no huge pages in the pool",
        "huge-pages",
        "lack",
        "both 0",
        "sudo sysctl -w vm.nr_hugepages=512",
        files={
            "/proc/meminfo": "MemTotal: 268435456 kB\nHugePages_Total: 0\nHugePages_Free: 0\n"
            "Hugepagesize: 2048 kB\n"
        },
    ),
    Case(
        "the pool is used up",
        "huge-pages",
        "warn",
        "hold the whole pool",
        "sysctl -w vm.nr_hugepages=1024  # on the host",
        files={
            **DOCKER,
            "/proc/meminfo": "MemTotal: 268435456 kB\nHugePages_Total: 512\n"
            "HugePages_Free: 0\nHugepagesize: 2048 kB\n",
        },
    ),
    Case(
        "kernel without huge pages",
        "huge-pages",
        "lack",
        "CONFIG_HUGETLBFS",
        'huge="prefer"',
        files={"/proc/meminfo": "MemTotal: 268435456 kB\n"},
    ),
    Case(
        "shared memory excluded from huge pages",
        "transparent-huge-pages",
        "warn",
        "buffers are memfds",
        "echo advise >",
        files={"/sys/kernel/mm/transparent_hugepage/shmem_enabled": "always advise [never] deny"},
    ),
    Case(
        "memlock limit of 64 KiB",
        "memlock",
        "lack",
        "RLIMIT_MEMLOCK is 64 KiB",
        "/etc/security/limits.d",
        calls={"memlock_limit_bytes": 65536, "lock_errno": errno.ENOMEM},
        others=("rdma-memlock",),
    ),
    Case(
        "memlock in docker",
        "memlock",
        "lack",
        "lacks CAP_IPC_LOCK",
        "docker run --ulimit memlock=-1:-1",
        files=DOCKER,
        calls={"memlock_limit_bytes": 8 << 20, "lock_errno": errno.ENOMEM},
        others=("rdma-memlock",),
    ),
    Case(
        "memlock in a pod",
        "memlock",
        "lack",
        "lacks CAP_IPC_LOCK",
        "IPC_LOCK",
        files=POD,
        calls={"memlock_limit_bytes": 8 << 20, "lock_errno": errno.EPERM},
        others=("rdma-memlock",),
    ),
    Case(
        "a cgroup too small to lock in",
        "memlock",
        "lack",
        "free in this cgroup",
        "memory limit",
        calls={"lock_errno": errno.ENOMEM},
    ),
    Case(
        "64 MiB of /dev/shm",
        "shared-memory",
        "warn",
        "default of container engines",
        "docker run --shm-size",
        files=DOCKER,
        calls={"shm_bytes": 64 << 20},
    ),
    Case(
        "/dev/shm not mounted",
        "shared-memory",
        "lack",
        "no tmpfs at /dev/shm",
        "sudo mount -t tmpfs",
        gone=("/dev/shm",),
    ),
    Case(
        "cgroup v2 limit on the way up",
        "cgroup-memory",
        "warn",
        "/sys/fs/cgroup/a/memory.max",
        "Raise resources.limits.memory",
        files={
            **POD,
            "/proc/self/cgroup": "0::/a/b\n",
            "/sys/fs/cgroup/a/memory.max": str(2 * GIB),
            "/sys/fs/cgroup/a/memory.current": str(GIB),
            "/sys/fs/cgroup/a/b/memory.max": "max",
        },
    ),
    Case(
        "cgroup v1 limit",
        "cgroup-memory",
        "warn",
        "/sys/fs/cgroup/memory/u/memory.limit_in_bytes",
        "sudo systemctl set-property",
        files={
            "/proc/self/cgroup": "4:cpu:/u\n3:memory:/u\n",
            "/sys/fs/cgroup/memory/u/memory.limit_in_bytes": str(GIB),
            "/sys/fs/cgroup/memory/u/memory.usage_in_bytes": "4096",
        },
    ),
    Case(
        "few file descriptors",
        "open-files",
        "warn",
        "every buffer is a memfd",
        "ulimit -n 16384",
        calls={"open_files": (1024, 524288)},
    ),
    Case(
        "a socket without memory",
        "numa-nodes",
        "warn",
        "no memory on node 1",
        "memory channels",
        files={f"{NODE}/node1/meminfo": "Node 1 MemTotal: 0 kB\n"},
    ),
    Case("masked /sys", "numa-nodes", "warn", "CONFIG_NUMA", "mount -t sysfs", gone=(NODE,)),
    Case(
        "seccomp refuses mbind",
        "numa-calls",
        "lack",
        "seccomp filter refuses the call (mbind: EPERM)",
        "docker run --cap-add SYS_NICE",
        files={**DOCKER, "/proc/self/status": "Seccomp:\t2\n"},
        calls={"place_errnos": (errno.EPERM, 0)},
    ),
    Case(
        "seccomp refuses move_pages in a pod",
        "numa-calls",
        "lack",
        "move_pages: EPERM",
        "SYS_NICE to securityContext",
        files={**POD, "/proc/self/status": "Seccomp:\t2\n"},
        calls={"place_errnos": (0, errno.EPERM)},
    ),
    Case(
        "kernel without NUMA",
        "numa-calls",
        "lack",
        "CONFIG_NUMA",
        "CONFIG_MIGRATION",
        calls={"place_errnos": (errno.ENOSYS, errno.ENOSYS)},
    ),
    Case(
        "unknown architecture",
        "numa-calls",
        "warn",
        "system call numbers",
        "strict buffer",
        calls={"architecture": "s390x", "place_errnos": None},
    ),
    Case(
        "automatic balancing",
        "numa-balancing",
        "warn",
        "move pages",
        "sudo sysctl -w kernel.numa_balancing=0",
        files={"/proc/sys/kernel/numa_balancing": "1"},
    ),
    Case(
        "udmabuf not loaded",
        "udmabuf",
        "lack",
        "not loaded",
        "sudo modprobe udmabuf",
        gone=("/dev/udmabuf",),
    ),
    Case(
        "udmabuf for root only",
        "udmabuf",
        "lack",
        "group kvm",
        "sudo usermod -aG kvm",
        calls={"closed": ("/dev/udmabuf",)},
    ),
    Case(
        "udmabuf not built",
        "udmabuf",
        "lack",
        "CONFIG_UDMABUF",
        "exports are memfds",
        files={f"/lib/modules/{RELEASE}/modules.dep": ""},
        gone=("/dev/udmabuf",),
    ),
    Case(
        "heaps for root only",
        "dma-heap",
        "lack",
        "belongs to root",
        "/dev/dma_heap/system",
        calls={"closed": ("/dev/dma_heap/system",)},
    ),
    Case("no heaps", "dma-heap", "lack", "CONFIG_DMABUF_HEAPS", "CONFIG", gone=("/dev/dma_heap",)),
    Case(
        "GPU without driver",
        "gpu",
        "lack",
        "/proc/driver/nvidia is not",
        "apt-get install nvidia-driver",
        gone=("/proc/driver/nvidia", "/dev/nvidia0"),
    ),
    Case(
        "GPU not passed into the container",
        "gpu",
        "lack",
        "no GPU was passed",
        "docker run --gpus all",
        files=DOCKER,
        gone=("/dev/nvidia0",),
    ),
    Case(
        "peermem not loaded",
        "gpu",
        "warn",
        "dma-buf only",
        "sudo modprobe nvidia-peermem",
        gone=("/sys/module/nvidia_peermem",),
    ),
    Case(
        "an accelerator we cannot use",
        "gpu",
        "warn",
        "only NVIDIA",
        "host buffers",
        files={f"{CARD}/vendor": "0x1002"},
        gone=("/proc/driver/nvidia", "/dev/nvidia0"),
    ),
    Case(
        "no CUDA library and no GPU",
        "cuda",
        "lack",
        "libcuda.so.1: cannot open",
        "sim",
        calls={"libraries": RDMA_LIBRARIES},
        gone=("/dev/nvidia0",),
        others=("gpu",),
    ),
    Case(
        "no CUDA library beside a GPU",
        "cuda",
        "lack",
        "libcuda.so.1: cannot open",
        "apt-get install libcuda1",
        calls={"libraries": RDMA_LIBRARIES},
    ),
    Case(
        "CUDA library not in the container",
        "cuda",
        "lack",
        "libcuda.so.1: cannot open",
        "docker run --gpus all",
        files=DOCKER,
        calls={"libraries": RDMA_LIBRARIES},
    ),
    Case(
        "no CUDA packages",
        "cuda",
        "lack",
        "NVRTC compiles",
        "dmaplane[gpu]",
        calls={"packages": ("numpy", "rich", "typer", "dmaplane")},
    ),
    Case(
        "a CUDA device that cannot be opened",
        "cuda",
        "lack",
        "CUDA_VISIBLE_DEVICES",
        "nvidia-smi",
        calls={"cuda": doctor.Trial(False, "it needs a GPU: look at CUDA_VISIBLE_DEVICES")},
    ),
)


def test_healthy_server_has_nothing_to_say(tmp_path: pathlib.Path) -> None:
    report = examine(tmp_path)
    assert [result for result in report.checks if result.verdict != "ok"] == []
    assert report.plane == "kernel"
    assert (report.machine["distribution"], report.machine["nodes"]) == ("Test Linux 1", 2)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_broken_machine(tmp_path: pathlib.Path, case: Case) -> None:
    check(tmp_path, case)


def test_no_plane_at_all(tmp_path: pathlib.Path) -> None:
    broken = doctor.Trial(False, "broken")
    calls = Calls(embedded=broken, kernel=broken)
    report = doctor.examine(FakeMachine(tmp_path, HEALTHY, calls))
    assert report.plane is None
    assert [plane["usable"] for plane in report.as_json()["planes"].values()] == [False, False]


def test_root_needs_no_sudo(tmp_path: pathlib.Path) -> None:
    case = next(case for case in CASES if case.name == "udmabuf not loaded")
    as_root = dataclasses.replace(case, calls={"user_id": 0})
    assert examine(tmp_path, as_root).result("udmabuf").fix == "modprobe udmabuf"


def test_an_empty_machine_crashes_no_check(tmp_path: pathlib.Path) -> None:
    report = doctor.examine(FakeMachine(tmp_path, {}, Calls()))
    assert len(report.checks) == len(doctor.CHECKS)


def test_every_complaint_has_cause_and_fix(tmp_path: pathlib.Path) -> None:
    for number, case in enumerate(CASES):
        for result in examine(tmp_path / str(number), case).checks:
            assert result.finding
            assert bool(result.cause) == (result.verdict != "ok"), result
            assert bool(result.fix) == (result.verdict != "ok"), result
            assert len(result.finding.splitlines()) == 1
