# SPDX-License-Identifier: MIT
"""Kill the peer, start it again, many times, with no manual step: nothing grows.

DMAPLANE_ENDPOINT_KILLS says how often; tools/verify.py has a stage with a thousand.
"""

from __future__ import annotations

import errno
import os
import random
import time
from pathlib import Path

from nursery import Nursery
from reach import FIELDS, grant, reach
from test_failures import shared_mappings

import dmaplane
from dmaplane import _abi
from dmaplane.testing import _pair, _rig
from dmaplane.testing._pair import read, recv, send, write_imm
from dmaplane.testing._rig import MIB, Rings, expect

KILLS = int(os.environ.get("DMAPLANE_ENDPOINT_KILLS", "40"))
WARM_UP = 10
"""Cycles after which caches and arenas have their size."""

GROWTH_BYTES = 8 * MIB
"""Far less than one region (4 MiB) leaked in every cycle of the shortest run."""

LENGTH = 4 * MIB


def _footprint() -> tuple[int, int, int]:
    """Bytes of our own, fds, and mappings of memory files."""
    words = Path("/proc/self/statm").read_text().split()
    return (int(words[1]) * 4096, _rig.open_fds(), shared_mappings())


def _one_life(
    nursery: Nursery, plane: dmaplane.Plane, rings: Rings, path: str, address: str, delay: float
) -> str:
    """A peer is born, is connected to, and is killed in the middle of everything."""
    settings = {"length_bytes": LENGTH, "fill": 3, "fields": FIELDS, "receives": 2}
    with nursery.peer("serve", path=path, address=address, **settings) as peer:
        bound: str = peer.hear()["bound"]
        side = reach(plane, rings, bound, path)
        remote = grant(side, peer.hear())
        memory = side.memory(LENGTH)
        entries = (
            write_imm(memory, remote, LENGTH, 1),
            read(memory, remote, LENGTH),
            send(memory, 4096),
            recv(memory, 4096),
        )
        side.submit(*entries)
        time.sleep(delay)
        peer.kill()
        killed = time.monotonic()
        done = side.wait(len(entries))["result"].tolist()
        assert set(done) <= {0, -errno.ECONNRESET}, done
        side.event(_abi.EVENT_ENDPOINT_LOST)
        expect(side.destroy_region(remote), 0)
        expect(side.destroy(), 0)
        memory.mapped.unmap()
        expect(_rig.destroy(plane, _abi.BUFFER_DESTROY, memory.id), 0)
        found = plane.statistics()
        assert (found.endpoints, found.regions, found.buffers) == (0, 0, 0)
        assert time.monotonic() - killed < _rig.SECOND
    return bound


def test_a_peer_that_is_killed_and_restarted_costs_nothing(
    nursery: Nursery, plane: dmaplane.Plane, rings: Rings, path: str
) -> None:
    """At the same address each time; the plane that stays has what it had."""
    chance = random.Random(int(os.environ.get("DMAPLANE_SEED", "1")))
    address = _pair.LOOPBACK
    before = None
    for cycle in range(max(KILLS, 2 * WARM_UP)):
        if cycle == WARM_UP:
            before = _footprint()
        address = _one_life(nursery, plane, rings, path, address, chance.random() * 0.01)
    assert before is not None
    after = _footprint()
    assert after[1] <= before[1], f"fds: {before[1]}, then {after[1]}"
    assert after[2] <= before[2], f"mapped memory files: {before[2]}, then {after[2]}"
    assert after[0] - before[0] < GROWTH_BYTES, f"bytes: {before[0]}, then {after[0]}"
