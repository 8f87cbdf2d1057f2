# SPDX-License-Identifier: MIT
"""How two puppets of the two machines come to a connection, and over what."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
import time
from typing import Any

import pytest
from node import Node
from puppet import Puppet
from twins import Pair

from dmaplane import _abi

MIB = 1 << 20
LENGTH = 3 * MIB
SECRET = "two machines, one secret"
DETECT_MS = 4000
"""A second is nothing on an emulated machine that shares two processors with another."""

WINDOW = {"window_slots": 64, "window_bytes": MIB, "detect_ms": DETECT_MS}

NOT_YET = -errno.EHOSTUNREACH
"""A cable that was just put in: the way there may not be known yet."""

RDMA_MODULES = ("rdma_rxe", "ib_uverbs", "rdma_ucm")
RDMA_DEVICE = "rxe0"
MODULE = "dmaplane.ko"
MODULE_USERS = "/sys/module/dmaplane/refcnt"
RESOURCES = ("pd", "cq", "qp", "cm_id", "mr", "ctx", "srq")
COUNTERS = f"/sys/class/infiniband/{RDMA_DEVICE}/ports/1/hw_counters"
NOT_READY = ("rcvd_rnr_err", "send_rnr_err", "retry_rnr_exceeded_err")
"""Receiver not ready: sent, received, given up. We never let it come to that."""


def bring_rdma_up(pair: Pair) -> None:
    """Soft-RoCE on the wire of both machines; it stays as long as they do."""
    for tool in ("rdma", "modprobe"):
        if not shutil.which(tool):
            pytest.skip(f"missing-tool: {tool}")
    for node in pair.nodes:
        for module in RDMA_MODULES:
            status, said = node.run("modprobe", module)
            if status:
                pytest.skip(f"missing-kernel-feature: {module}: {said}")
        if RDMA_DEVICE not in node.shell("rdma link show"):
            node.shell(f"rdma link add {RDMA_DEVICE} type rxe netdev wire")


def bring_module_up(pair: Pair) -> None:
    """The kernel plane in both machines; it stays."""
    for node in pair.nodes:
        if node.run("test", "-e", MODULE_USERS)[0]:
            shutil.copyfile(node.folder.parent / MODULE, node.folder / MODULE)
            depends = node.shell(f"modinfo -F depends /mnt/{MODULE}").replace(",", " ")
            node.shell(f"modprobe -a {depends}")
            node.shell(f"insmod /mnt/{MODULE}")


def in_use(node: Node) -> dict[str, int]:
    """What of the device there is in use, by kind; empty if there is no device."""
    listed = json.loads(node.shell("rdma -j resource show"))
    shown = next((row for row in listed if row["ifname"] == RDMA_DEVICE), {})
    return {kind: shown[kind] for kind in RESOURCES if kind in shown}


def not_ready(node: Node) -> int:
    """How often a receiver of that machine's was not ready, or somebody else's for it."""
    names = " ".join(f"{COUNTERS}/{name}" for name in NOT_READY)
    return sum(int(line) for line in node.shell(f"cat {names}").split())


def sends_refused(node: Node) -> int:
    """How often the card took no packet of the device's, as the device counts it.

    Soft-RoCE ends the connection then, whatever its retries are. A cable that is pulled gives it
    the chance for some milliseconds, between the end of the card's queue and of its neighbours.
    """
    return int(node.shell(f"cat {COUNTERS}/send_err 2>/dev/null || echo 0"))


@dataclasses.dataclass(frozen=True)
class Carrier:
    """What carries the connections of a test, and whose plane is at each end."""

    fabric: str
    near: str = "embedded"
    far: str = "embedded"

    def __str__(self) -> str:
        planes = {self.near, self.far}
        shown = "kernel" if planes == {"kernel"} else f"{self.near}-{self.far}"
        return self.fabric if planes == {"embedded"} else f"{self.fabric}-{shown}"

    @property
    def path(self) -> int:
        return {"tcp": _abi.PATH_TCP, "verbs": _abi.PATH_VERBS}[self.fabric]

    def ready(self, pair: Pair) -> None:
        """Both machines run and can be connected."""
        pair.ready()
        if self.fabric == "verbs":
            bring_rdma_up(pair)
        if "kernel" in (self.near, self.far):
            bring_module_up(pair)

    def idle(self, node: Node) -> dict[str, int]:
        """What the device has in use for itself, on a machine where no program runs."""
        return in_use(node) if self.fabric == "verbs" else {}

    def check(self, node: Node, before: dict[str, int]) -> None:
        """The programs have ended: as before, and no receiver was ever not ready."""
        if self.fabric != "verbs":
            return
        limit = time.monotonic() + node.patience_s
        while (now := in_use(node)) != before and now:
            assert time.monotonic() < limit, f"{before} were in use, now {now}"
        assert not now or not_ready(node) == 0
        assert node.shell(f"cat {MODULE_USERS} 2>/dev/null || echo 0").strip() == "0"


VERBS = (
    Carrier("verbs"),
    Carrier("verbs", "kernel", "kernel"),
    Carrier("verbs", "kernel", "embedded"),
    Carrier("verbs", "embedded", "kernel"),
)
CARRIERS = (Carrier("tcp"), *VERBS)


def listen(far: Puppet, *, port: int = 0, length_bytes: int = LENGTH, **settings: Any) -> Any:
    """@far listens; what it says of where, and who it is."""
    every = {"length_bytes": length_bytes, "fill": 3, "fields": WINDOW, **settings}
    every |= {"path": far.fabric, "plane": far.plane, "secret": SECRET}
    return far.live("serve", address=f"{far.node.address.ip}:{port}", **every)


def call(near: Puppet, *, length_bytes: int = LENGTH) -> None:
    """@near is born; it is to connect."""
    near.live("call", length_bytes=length_bytes, plane=near.plane)


def reach(near: Puppet, far: Puppet, bound: str, *, patience_s: float = 0.0) -> dict[str, Any]:
    """@near, which lives, connects to @far and takes its region.

    @patience_s: a cable was just put in; so long its neighbour may not be known again.
    """
    words: dict[str, Any] = {"address": bound, "secret": SECRET, "path": near.fabric}
    limit = time.monotonic() + patience_s
    made: dict[str, Any] = near.do("connect", **words, **WINDOW)
    while made["answer"] == NOT_YET and time.monotonic() < limit:
        time.sleep(0.2)
        made = near.do("connect", **words, **WINDOW)
    assert made["answer"] == 0, made
    granted = far.hear()
    near.do("take", key=granted["key"])
    return {**made, "region": granted["region"]}


def meet(near: Puppet, far: Puppet, *, length_bytes: int = LENGTH) -> dict[str, Any]:
    """Both are born and connected; what the connection is, and `bound`, where @far listens."""
    said = listen(far, length_bytes=length_bytes)
    call(near, length_bytes=length_bytes)
    made = reach(near, far, said["bound"])
    assert made["incarnation"] == said["incarnation"]
    return {**made, "bound": said["bound"]}
