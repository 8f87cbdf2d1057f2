# SPDX-License-Identifier: MIT
"""Memory: huge pages, locking, limits."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from dmaplane.doctor._check import Finding, lack, ok, size, warn
from dmaplane.doctor._machine import UNLIMITED

if TYPE_CHECKING:
    from dmaplane.doctor._machine import Machine

LOCK_TRIAL_BYTES: Final = 64 << 20
SHM_WANTED_BYTES: Final = 1 << 30
CGROUP_WANTED_BYTES: Final = 2 << 30
OPEN_FILES_WANTED: Final = 16384

_POOL: Final = "/proc/sys/vm/nr_hugepages"
_OVERCOMMIT: Final = "/proc/sys/vm/nr_overcommit_hugepages"
_THP: Final = "/sys/kernel/mm/transparent_hugepage"


def huge_pages(machine: Machine) -> Finding:
    """The pool behind kind "huge", and the overcommit that can stand in for it."""
    page = machine.meminfo("Hugepagesize")
    if not page:
        return lack(
            "this kernel has no huge pages",
            cause="/proc/meminfo has no Hugepagesize: built without CONFIG_HUGETLBFS",
            fix='Boot a kernel with CONFIG_HUGETLBFS, or create buffers with huge="prefer".',
        )
    total, free = machine.meminfo("HugePages_Total"), machine.meminfo("HugePages_Free")
    overcommit = machine.number(_OVERCOMMIT) or 0
    wanted = (1 << 30) // page or 1
    fix = machine.on_host(f"sysctl -w vm.nr_hugepages={total + wanted}")
    if free:
        return ok(f"{free} of {total} pages of {size(page)} free, {overcommit} more on demand")
    if overcommit:
        return ok(f"no page of {size(page)} in the pool, up to {overcommit} on demand")
    if total:
        return warn(
            f"all {total} pages of {size(page)} are in use",
            cause="other processes hold the whole pool, and overcommit is 0",
            fix=fix,
        )
    return lack(
        f"no page of {size(page)} in the pool",
        cause=f"{_POOL} and nr_overcommit_hugepages are both 0",
        fix=fix,
    )


def transparent_huge_pages(machine: Machine) -> Finding:
    """Whether the kernel may put huge pages behind our memfds (they are shmem)."""
    mode = machine.selected(f"{_THP}/enabled")
    shmem = machine.selected(f"{_THP}/shmem_enabled")
    if mode is None or shmem is None:
        return lack(
            "no transparent huge pages",
            cause=f"{_THP} is missing: built without CONFIG_TRANSPARENT_HUGEPAGE",
            fix='Boot a kernel with that option, or use a pool and huge="require".',
        )
    if shmem in ("advise", "always", "within_size", "force"):
        return ok(f"enabled={mode}, shmem_enabled={shmem}")
    return warn(
        f"enabled={mode}, shmem_enabled={shmem}: buffers get base pages",
        cause="buffers are memfds, and shared memory is excluded from huge pages",
        fix=machine.on_host(f"sh -c 'echo advise > {_THP}/shmem_enabled'"),
    )


def lift_memlock(machine: Machine) -> str:
    """How the limit is lifted here."""
    return {
        "docker": "docker run --ulimit memlock=-1:-1 ...",
        "podman": "podman run --ulimit memlock=-1:-1 ...",
        "kubernetes": "Add IPC_LOCK to securityContext.capabilities.add of the pod.",
    }.get(
        machine.container,
        machine.as_root(
            "sh -c 'echo \"* - memlock unlimited\" > /etc/security/limits.d/90-dmaplane.conf'"
        ),
    )


def memlock(machine: Machine) -> Finding:
    """Not what the limit says, but what happens: 64 MiB are locked in a child."""
    limit = machine.memlock_limit_bytes()
    said = "unlimited" if limit == UNLIMITED else size(limit)
    answer = machine.lock_memory(LOCK_TRIAL_BYTES)
    if answer == 0:
        if limit != UNLIMITED and limit < LOCK_TRIAL_BYTES:
            said += ", which CAP_IPC_LOCK overrides"
        return ok(f"locked {size(LOCK_TRIAL_BYTES)} in a child (limit: {said})")
    fix = lift_memlock(machine)
    if answer in (errno.ENOMEM, errno.EPERM, errno.EAGAIN) and limit != UNLIMITED:
        return lack(
            f"cannot lock {size(LOCK_TRIAL_BYTES)}",
            cause=f"RLIMIT_MEMLOCK is {said} and this process lacks CAP_IPC_LOCK",
            fix=fix,
        )
    if answer == errno.ENOMEM:
        return lack(
            f"cannot lock {size(LOCK_TRIAL_BYTES)} though the limit is {said}",
            cause="there is not that much memory free in this cgroup",
            fix="Raise the memory limit of the container or unit by 64 MiB or more.",
        )
    return lack(
        f"cannot lock {size(LOCK_TRIAL_BYTES)}",
        cause=f"mlock answered {os.strerror(answer)} (limit: {said})",
        fix=fix,
    )


def shared_memory(machine: Machine) -> Finding:
    """/dev/shm: what other transports in the same process need; our buffers do not use it."""
    total, free = machine.filesystem_bytes("/dev/shm")
    if not machine.exists("/dev/shm") or not total:
        return lack(
            "/dev/shm is not mounted",
            cause="no tmpfs at /dev/shm; frameworks beside dmaplane need it",
            fix=machine.as_root("mount -t tmpfs -o size=50% tmpfs /dev/shm"),
        )
    if total < SHM_WANTED_BYTES:
        wanted = "--shm-size=8g"
        return warn(
            f"/dev/shm has only {size(total)}",
            cause="the default of container engines is 64 MiB"
            if machine.container
            else "mounted with a small size= option",
            fix={
                "docker": f"docker run {wanted} ...",
                "podman": f"podman run {wanted} ...",
                "kubernetes": "Mount an emptyDir of medium Memory at /dev/shm.",
            }.get(machine.container, machine.as_root("mount -o remount,size=50% /dev/shm")),
        )
    return ok(f"{size(free)} of {size(total)} free")


def cgroup_memory(machine: Machine) -> Finding:
    """The limit this process dies at. Buffers are resident, so they count in full."""
    limit, used, source = _cgroup_limit(machine)
    if limit is None:
        return ok("no limit below the memory of the machine")
    left = limit - used
    if left < CGROUP_WANTED_BYTES and limit < machine.memory_bytes:
        return warn(
            f"{size(max(left, 0))} left of the {size(limit)} this cgroup may use",
            cause=f"{source} limits this process; buffers are resident and count in full",
            fix={
                "docker": "docker run --memory=16g ...",
                "podman": "podman run --memory=16g ...",
                "kubernetes": "Raise resources.limits.memory of the pod.",
            }.get(
                machine.container,
                machine.as_root("systemctl set-property UNIT MemoryMax=16G"),
            ),
        )
    return ok(f"{size(left)} left of {size(limit)} ({source})")


def _cgroup_limit(machine: Machine) -> tuple[int | None, int, str]:
    """The tightest limit on the way up from our cgroup, what is used there, and its file."""
    tightest: tuple[int | None, int, str] = (None, 0, "")
    for line in (machine.text("/proc/self/cgroup") or "").splitlines():
        _, controllers, below = line.split(":", 2)
        if controllers == "":
            top, limit_name, used_name = "/sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            top = "/sys/fs/cgroup/memory"
            limit_name, used_name = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        parts = [part for part in below.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            folder = "/".join([top, *parts[:depth]])
            limit = machine.number(f"{folder}/{limit_name}")
            # The kernel's word for "none" is "max", or a number no machine has.
            if limit is None or limit >= 1 << 60:
                continue
            if tightest[0] is None or limit < tightest[0]:
                used = machine.number(f"{folder}/{used_name}") or 0
                tightest = limit, used, f"{folder}/{limit_name}"
    return tightest


def open_files(machine: Machine) -> Finding:
    """Every buffer, export and channel holds a file descriptor."""
    soft, hard = machine.open_files_limit()
    if soft >= OPEN_FILES_WANTED:
        return ok(f"up to {soft} file descriptors")
    within = hard >= OPEN_FILES_WANTED or hard == UNLIMITED
    return warn(
        f"up to {soft} file descriptors",
        cause="every buffer is a memfd and holds one for as long as it lives",
        fix=f"ulimit -n {OPEN_FILES_WANTED}"
        if within
        else machine.as_root(f"prlimit --pid $$ --nofile={OPEN_FILES_WANTED}"),
    )
