# SPDX-License-Identifier: MIT
"""NUMA: which nodes there are, and whether pages can be placed and found."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from dmaplane.doctor._check import Finding, lack, ok, size, warn

if TYPE_CHECKING:
    from dmaplane.doctor._machine import Machine


def nodes(machine: Machine) -> Finding:
    """How many, and whether each has memory."""
    found = machine.nodes()
    if not machine.exists("/sys/devices/system/node"):
        return warn(
            "one node assumed",
            cause="no /sys/devices/system/node: a kernel without CONFIG_NUMA, or a masked /sys",
            fix="mount -t sysfs sysfs /sys",
        )
    if len(found) == 1:
        return ok("one node: every placement is right by construction")
    parts, empty = [], []
    for node in found:
        text = machine.text(f"/sys/devices/system/node/node{node}/meminfo") or ""
        total = next(
            (int(line.split()[-2]) * 1024 for line in text.splitlines() if "MemTotal" in line), 0
        )
        parts.append(f"{node}: {size(total)}")
        if not total:
            empty.append(node)
    listed = f"{len(found)} nodes ({', '.join(parts)})"
    if empty:
        return warn(
            listed,
            cause=f"no memory on node {', '.join(map(str, empty))}: a socket without DIMMs, "
            "or memory kept off-line",
            fix="Populate the memory channels of that socket evenly.",
        )
    return ok(listed)


def calls(machine: Machine) -> Finding:
    """mbind places pages, move_pages proves where they are. Both are really made."""
    answer = machine.place_memory()
    if answer is None:
        return warn(
            f"not tried on {machine.architecture()}",
            cause="doctor does not know the system call numbers of this architecture",
            fix="Create a strict buffer: it says whether placement can be verified.",
        )
    failed = [
        f"{name}: {errno.errorcode.get(number, str(number))}"
        for name, number in zip(("mbind", "move_pages"), answer, strict=True)
        if number
    ]
    if not failed:
        return ok("mbind and move_pages work: placement can be asked for and verified")
    finding = f"placement cannot be {'asked for' if answer[0] else 'verified'}"
    seen = ", ".join(failed)
    if machine.seccomp and set(answer) <= {0, errno.EPERM, errno.ENOSYS}:
        return lack(
            finding,
            cause=f"a seccomp filter refuses the call ({seen})",
            fix={
                "kubernetes": "Add SYS_NICE to securityContext.capabilities.add of the pod.",
                "podman": "podman run --cap-add SYS_NICE ...",
                "docker": "docker run --cap-add SYS_NICE ...",
            }.get(machine.container, "Allow mbind and move_pages in the seccomp profile."),
        )
    if errno.ENOSYS in answer:
        return lack(
            finding,
            cause=f"the kernel has no such call ({seen}): built without CONFIG_NUMA",
            fix="Boot a kernel with CONFIG_NUMA and CONFIG_MIGRATION.",
        )
    reason = next(number for number in answer if number)
    return lack(
        finding,
        cause=f"{seen} ({os.strerror(reason)}); allowed nodes: "
        f"{machine.fields('/proc/self/status').get('Mems_allowed_list', 'unknown')}",
        fix=machine.as_root("systemctl set-property UNIT AllowedMemoryNodes=")
        if reason == errno.EINVAL
        else "Run with CAP_SYS_NICE.",
    )


def balancing(machine: Machine) -> Finding:
    """Automatic balancing moves pages after they were placed."""
    name = "/proc/sys/kernel/numa_balancing"
    value = machine.number(name)
    if value and len(machine.nodes()) > 1:
        return warn(
            "automatic NUMA balancing is on",
            cause=f"{name} is {value}: the kernel may move pages that no device has pinned",
            fix=machine.on_host("sysctl -w kernel.numa_balancing=0"),
        )
    return ok("off" if not value else "on, and there is one node only")
