# SPDX-License-Identifier: MIT
"""The conformance suite's cases about connections, with their two planes in two machines.

The cases are what they are everywhere: they run on the first machine, and every plane of
theirs but the first is on the second, where an outpost has it. Cases listen there; see
DMAPLANE_CONFORMANCE_ADDRESS in conftest.py.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, Final

from far_plane import FarPlane
from verbs_conformance import NOT_IN_THE_KERNEL, NOT_YET

import dmaplane
from dmaplane import testing
from dmaplane.testing import _rig

CASE_S: Final = 25 * _rig.SLOWNESS
"""Longer than the longest takes, with a machine that has something else to do."""

ITS_PEER_IS_A_CHILD = "its peer is a child of the process that runs it"
NOT_ABOUT_TWO: Final = {
    "connecting-ipv6_is_served_as_ipv4_is": "it is about [::1], which is no other machine",
    "connecting-nobody_there_is_connection_refused": "it has one plane, which listens and connects",
    "loss-killed_peer_is_noticed_and_leaves_nothing": ITS_PEER_IS_A_CHILD,
    "loss-stopped_peer_is_lost_after_the_time_asked_for": ITS_PEER_IS_A_CHILD,
}
"""Case without its path: why it is not run. What is like it is in test_faults.py."""

BY_TCP: Final = (
    "strangers-silent_stranger_keeps_nobody_waiting",
    "strangers-garbage_instead_of_a_handshake_is_sent_away",
)
"""These name no fabric and are about a door of tcp."""

LONG: Final = (
    "interrupting-cancelled_message",
    "interrupting-cancelled_transfer",
    "interrupting-deadline_is_honoured",
    "interrupting-destroyed_channel",
    "loss-closed_plane",
    "loss-drained_endpoint",
    "loss-endpoint_in_use",
    "remote-every_mix",
    "remote-small_ones_pass",
    "revoking-buffer_with_a_region",
    "revoking-region_in_use",
    "revoking-revoked_region_gives",
    "revoking-revoked_region_is",
)
"""They move hundreds of MiB, or take a thousand steps: between emulated machines, some time."""


class Planes:
    """Opens the planes of a case: the first here, while it is open all others there."""

    def __init__(self, near: str, far: str, outpost: tuple[str, int]) -> None:
        self._near, self._far, self._outpost = near, far, outpost
        self._opened: list[dmaplane.Plane] = []

    def __call__(self) -> dmaplane.Plane:
        self._opened = [plane for plane in self._opened if not plane.closed]
        if self._opened:
            made: dmaplane.Plane = FarPlane(self._outpost, self._far)
        else:
            made = dmaplane.open(plane=self._near)
        self._opened.append(made)
        return made

    def close(self) -> None:
        """What a case that failed has left."""
        for plane in self._opened:
            plane.close()


def reasons(fabric: str, far: str) -> dict[str, str]:
    """Case without its path: why it is not run over @fabric with a plane of that kind far."""
    if fabric == "verbs" and far == "kernel":
        return {**NOT_IN_THE_KERNEL, **NOT_YET, **NOT_ABOUT_TWO}
    return {**NOT_YET, **NOT_ABOUT_TWO}


def chosen(fabric: str, words: list[str], *, long: bool | None) -> Iterator[testing.Case]:
    """Cases whose name begins with one of @words; if @long is not None, only the long or others."""
    for case in testing.cases():
        name = f"{case.group}-{case.name}"
        if not name.startswith(tuple(words)):
            continue
        if long is not None and long != name.startswith(LONG):
            continue
        if case.path == "tcp":
            yield dataclasses.replace(case, path=fabric)
        elif fabric == "tcp" and name in BY_TCP:
            yield case


def attempt(case: testing.Case, make: Callable[[], dmaplane.Plane]) -> str:
    """Runs it; what went wrong, or nothing."""
    try:
        case.run(make)
    except BaseException:  # a case that does not apply has failed, too: here all of them do
        return traceback.format_exc(limit=-4)[-3000:]
    return ""


def run(
    fabric: str, near: str, far: str, outpost: list[Any], words: list[str], long: bool | None = None
) -> None:
    """A line of JSON for each case, and a last one that counts them."""
    excluded, count = reasons(fabric, far), 0
    for case in chosen(fabric, words, long=long):
        shown = {"case": str(case)}
        reason = excluded.get(f"{case.group}-{case.name}")
        if reason:
            print(json.dumps({**shown, "not": reason}), flush=True)
            continue
        faulthandler.dump_traceback_later(CASE_S, exit=True, file=sys.stdout)
        began = time.monotonic()
        planes = Planes(near, far, (outpost[0], outpost[1]))
        failed = attempt(case, planes)
        planes.close()
        faulthandler.cancel_dump_traceback_later()
        seconds = round(time.monotonic() - began, 1)
        print(json.dumps({**shown, "seconds": seconds, "failed": failed}), flush=True)
        count += 1
    print(json.dumps({"ran": count}), flush=True)
