# SPDX-License-Identifier: MIT
"""The conformance suite's cases about connections, over the fabric verbs; one line a case.

  python verbs_conformance.py [--planes ONE[,OTHER]] [WORD...]

Only cases whose name begins with one of WORD. ONE and OTHER are embedded or kernel: the planes
a case makes are by turns the one and the other, so that its two sides differ.

A program of its own: where cases listen is settled when dmaplane.testing is imported. The last
line is "N passed, N failed"; what is known not to work yet is not run, and said.
"""

from __future__ import annotations

import argparse
import dataclasses
import faulthandler
import itertools
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any

import dmaplane
from dmaplane import testing
from dmaplane.testing import _rig

if TYPE_CHECKING:
    from collections.abc import Callable

CASE_S = 60 * _rig.SLOWNESS
NOT_YET = {
    "connecting-ipv6_is_served_as_ipv4_is": "it is about [::1], and RDMA has no loopback",
    "strangers-wrong_secret_is_refused": "no secret at all is EPERM before anybody is called",
    "loss-killed_peer_is_noticed_and_leaves_nothing": "it counts descriptors, and rdma-core opens "
    "its device after the first count, for good; or it forks when that is done, which cannot",
}
"""Case without its path: why it is not run."""


NOT_IN_THE_KERNEL = {
    "strangers-strangers_do_not_disturb_who_is_connected": "they knock by tcp, and the kernel has "
    "no such door",
    "loss-stopped_peer_is_lost_after_the_time_asked_for": "who stops a process does not stop the "
    "kernel: it goes on answering for it",
}
"""Case without its path: why it is not run where a side is the kernel's."""


def by_turns(kinds: list[Any]) -> Callable[[], dmaplane.Plane]:
    """Opens planes of these kinds, one after the other."""
    turn = itertools.cycle(kinds)
    return lambda: dmaplane.open(plane=next(turn))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--planes", default="embedded")
    parser.add_argument("words", nargs="*")
    given = parser.parse_args()
    kinds = given.planes.split(",")
    not_yet = {**NOT_YET, **(NOT_IN_THE_KERNEL if "kernel" in kinds else {})}
    passed = failed = 0
    for case in testing.cases():
        if case.path != "tcp" or (given.words and not str(case).startswith(tuple(given.words))):
            continue
        mine = dataclasses.replace(case, path="verbs")
        reason = not_yet.get(f"{case.group}-{case.name}")
        if reason:
            print(f"not yet  {mine}: {reason}", flush=True)
            continue
        faulthandler.dump_traceback_later(CASE_S, exit=True)
        began = time.monotonic()
        try:
            mine.run(by_turns(kinds))
        except BaseException:  # the suite goes on, and the last line counts it
            failed += 1
            print(f"FAIL {mine}\n{traceback.format_exc(limit=-3)}", flush=True)
        else:
            passed += 1
            print(f"pass {mine} {time.monotonic() - began:.1f} s", flush=True)
        faulthandler.cancel_dump_traceback_later()
    print(f"{passed} passed, {failed} failed")
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
