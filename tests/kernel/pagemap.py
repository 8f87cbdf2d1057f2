# SPDX-License-Identifier: MIT
"""On which node pages are, found out without asking the module.

Root may read the frame number of every page of a process, and the kernel says which frames
are whose. Nothing here knows of dmaplane.
"""

from __future__ import annotations

import bisect
import ctypes
import functools
import itertools
import os
import re
from collections import Counter
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

PAGE: Final = os.sysconf("SC_PAGESIZE")
FRAME: Final = (1 << 55) - 1
PRESENT: Final = 1 << 63

# x86-64 system calls without a wrapper in the C library.
SYS_MBIND, SYS_SET_MEMPOLICY, SYS_MOVE_PAGES = 237, 238, 279
MPOL_DEFAULT, MPOL_BIND = 0, 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _call(*words: object) -> int:
    return int(_libc.syscall(*words))


def frames(address: int, length: int) -> npt.NDArray[np.uint64]:
    """The frame numbers of the pages of a range of ours, all of them present."""
    first = address // PAGE
    count = -(-(address + length) // PAGE) - first
    with open("/proc/self/pagemap", "rb", buffering=0) as file:
        file.seek(first * 8)
        entries = np.frombuffer(file.read(count * 8), np.uint64)
    assert len(entries) == count
    assert (entries & np.uint64(PRESENT)).all(), "not all pages are there"
    found: npt.NDArray[np.uint64] = entries & np.uint64(FRAME)
    assert found.all(), "frame numbers are for root only"
    return found


def _zoneinfo() -> list[tuple[str, str]]:
    """(node, what is said of it) of every zone."""
    text = Path("/proc/zoneinfo").read_text()
    return re.findall(r"^Node (\d+), zone +\w+\n((?: .*\n)+)", text, re.MULTILINE)


@functools.lru_cache(maxsize=1)
def _zones() -> list[tuple[int, int, int]]:
    """(first frame, end, node) of every populated zone, in order."""
    zones = []
    for node, body in _zoneinfo():
        spanned = re.search(r"^ +spanned +(\d+)$", body, re.MULTILINE)
        start = re.search(r"^ +start_pfn: +(\d+)$", body, re.MULTILINE)
        if spanned and start and int(spanned[1]):
            zones.append((int(start[1]), int(start[1]) + int(spanned[1]), int(node)))
    zones.sort()
    for (_, end, _), (start, _, _) in itertools.pairwise(zones):
        assert end <= start, "zones overlap: frames do not tell the node"
    return zones


def node_of(frame: int) -> int:
    zones = _zones()
    start, end, node = zones[bisect.bisect([zone[0] for zone in zones], frame) - 1]
    assert start <= frame < end, f"frame {frame} is in no zone"
    return node


def pages_by_node(address: int, length: int) -> dict[int, int]:
    """How many base pages of the range are on each node."""
    found = frames(address, length)
    counts: Counter[int] = Counter()
    for start, end, node in _zones():
        counts[node] += int(((found >= start) & (found < end)).sum())
    assert sum(counts.values()) == len(found)
    return {node: count for node, count in counts.items() if count}


def bind(address: int, length: int, node: int) -> None:
    """Pages of the range that are not there yet will come from @node."""
    mask = ctypes.c_ulong(1 << node)
    words = (address, length, MPOL_BIND, ctypes.addressof(mask), 64, 0)
    assert _call(SYS_MBIND, *(ctypes.c_ulong(word) for word in words)) == 0


def prefer_for_this_thread(node: int | None) -> None:
    """What this thread allocates comes from @node; None: from where it runs, as usual."""
    mask = ctypes.c_ulong(0 if node is None else 1 << node)
    mode = MPOL_DEFAULT if node is None else MPOL_BIND
    where = 0 if node is None else ctypes.addressof(mask)
    assert _call(SYS_SET_MEMPOLICY, mode, ctypes.c_ulong(where), ctypes.c_ulong(64)) == 0


def try_to_move(address: int, length: int, node: int) -> None:
    """Asks the kernel to move the pages to @node, as numactl and balancing do."""
    count = length // PAGE
    addresses = (ctypes.c_void_p * count)(*(address + PAGE * i for i in range(count)))
    nodes = (ctypes.c_int * count)(*[node] * count)
    status = (ctypes.c_int * count)()
    _call(SYS_MOVE_PAGES, 0, ctypes.c_ulong(count), addresses, nodes, status, 2)


def _meminfo(node: int) -> dict[str, int]:
    """What the kernel says of a node's memory, in bytes."""
    text = Path(f"/sys/devices/system/node/node{node}/meminfo").read_text()
    found = re.findall(rf"^Node {node} (\S+): +(\d+) kB$", text, re.MULTILINE)
    return {name: int(kib) << 10 for name, kib in found}


def free_bytes(node: int) -> int:
    """Free memory of a node."""
    return _meminfo(node)["MemFree"]


def nodes() -> set[int]:
    """Nodes that have memory."""
    return {node for _, _, node in _zones()}


def kept_bytes(node: int) -> int:
    """Free memory of a node that CPUs keep for themselves, tens of MiB: nobody counts it."""
    bodies = [body for where, body in _zoneinfo() if int(where) == node]
    counts = [re.findall(r"^ +count: +(\d+)$", body, re.MULTILINE) for body in bodies]
    return sum(int(count) for each in counts for count in each) * PAGE


def taken_bytes(node: int) -> int:
    """Memory of a node that somebody has for good; caches of files come and go."""
    said = _meminfo(node)
    free = said["MemFree"] + kept_bytes(node)
    return said["MemTotal"] - free - said["FilePages"] - said["SReclaimable"]
