# SPDX-License-Identifier: MIT
"""What this machine has and lacks, why, and what to do about it.

    report = examine()
    [check.fix for check in report.checks if check.verdict == "lack"]

The JSON of a report (`as_json`) is stable: names of checks and keys are only
ever added.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from dmaplane.doctor import _cuda, _devices, _memory, _numa, _planes, _rdma
from dmaplane.doctor._check import Check, Finding, Result, Verdict
from dmaplane.doctor._machine import Machine, Trial

__all__ = [
    "CHECKS",
    "Check",
    "Finding",
    "Machine",
    "Report",
    "Result",
    "Trial",
    "Verdict",
    "examine",
]

CHECKS: tuple[Check, ...] = (
    Check("embedded-plane", _planes.embedded_plane),
    Check("kernel-plane", _planes.kernel_plane),
    Check("kernel-headers", _planes.kernel_headers),
    Check("python", _planes.python),
    Check("kernel", _planes.kernel),
    Check("huge-pages", _memory.huge_pages),
    Check("transparent-huge-pages", _memory.transparent_huge_pages),
    Check("memlock", _memory.memlock),
    Check("shared-memory", _memory.shared_memory),
    Check("cgroup-memory", _memory.cgroup_memory),
    Check("open-files", _memory.open_files),
    Check("numa-nodes", _numa.nodes),
    Check("numa-calls", _numa.calls),
    Check("numa-balancing", _numa.balancing),
    Check("udmabuf", _devices.udmabuf),
    Check("dma-heap", _devices.dma_heap),
    Check("rdma", _rdma.devices),
    Check("rdma-modules", _rdma.modules),
    Check("rdma-nodes", _rdma.device_files),
    Check("rdma-libraries", _rdma.libraries),
    Check("rdma-gids", _rdma.gids),
    Check("rdma-mtu", _rdma.mtu),
    Check("rdma-memlock", _rdma.memlock),
    Check("rdma-netns", _rdma.namespaces),
    Check("rdma-plane", _rdma.plane),
    Check("gpu", _devices.gpu),
    Check("cuda", _cuda.cuda),
)

_PLANES = {"embedded": "embedded-plane", "kernel": "kernel-plane"}


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """All results of one examination."""

    machine: dict[str, Any]
    checks: tuple[Result, ...]

    def result(self, name: str) -> Result:
        """The result of one check; KeyError if there is none of that name."""
        for result in self.checks:
            if result.name == name:
                return result
        raise KeyError(name)

    @property
    def plane(self) -> str | None:
        """The plane that `dmaplane.open()` would take, None if there is none."""
        for plane in ("kernel", "embedded"):
            if self.result(_PLANES[plane]).verdict != "lack":
                return plane
        return None

    def as_json(self) -> dict[str, Any]:
        """The report as plain dicts and lists."""
        return {
            "machine": self.machine,
            "checks": [dataclasses.asdict(result) for result in self.checks],
            "planes": {
                plane: {
                    "usable": self.result(check).verdict != "lack",
                    "detail": self.result(check).finding,
                }
                for plane, check in _PLANES.items()
            },
        }


def _describe(machine: Machine) -> dict[str, Any]:
    return {
        "kernel": machine.kernel_release,
        "architecture": machine.architecture(),
        "distribution": machine.distribution,
        "cpus": machine.cpus(),
        "memory_bytes": machine.memory_bytes,
        "nodes": len(machine.nodes()),
        "container": machine.container,
        "user_id": machine.user_id(),
    }


def examine(machine: Machine | None = None) -> Report:
    """Runs every check, in order. Changes nothing; costs well under a second."""
    seen = machine or Machine()
    results = []
    for check in CHECKS:
        found = check.examine(seen)
        results.append(Result(check.name, found.verdict, found.finding, found.cause, found.fix))
    return Report(_describe(seen), tuple(results))
