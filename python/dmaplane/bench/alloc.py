# SPDX-License-Identifier: MIT
"""How long to have memory: allocated, mapped and written to, next to bare system calls.

One side is plane.buffer() and one byte written to every page through the user's own
mapping; the other is what a C program without a plane does for the same end:

  pages  memfd_create, ftruncate, mmap, a byte to every page
  huge   the same with MFD_HUGETLB
  user   private anonymous mmap, a byte to every page; ours then hands it to the plane

If the plane locks pages (seen in VmLck of this process) the other side ends with mlock.
Giving back is not timed. Ratios are ours / peer in time: 1.1 is 10 % slower.
"""

from __future__ import annotations

import mmap
import pathlib
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from dmaplane._errors import DmaplaneError
from dmaplane.bench import _loops, _pool, _result

if TYPE_CHECKING:
    from collections.abc import Callable

    from dmaplane._buffer import Buffer
    from dmaplane._plane import Plane

MEMFD: Final = 0
MEMFD_HUGE: Final = 1
PRIVATE: Final = 2


class Kind(NamedTuple):
    """One way to have memory."""

    name: str
    how: int
    peer: str


KINDS: Final = (
    Kind("pages", MEMFD, "memfd"),
    Kind("huge", MEMFD_HUGE, "memfd hugetlb"),
    Kind("user", PRIVATE, "private mmap"),
)


def _touched(buffer: Buffer, page_bytes: int) -> None:
    view = buffer.numpy()
    _loops.touch(view.ctypes.data, buffer.length_bytes, page_bytes)


def _ours_ms(plane: Plane, kind: Kind, length_bytes: int, page_bytes: int) -> float:
    if kind.how == PRIVATE:
        begin = time.perf_counter_ns()
        memory = mmap.mmap(-1, length_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        buffer = plane.buffer(user=memory)
        _touched(buffer, page_bytes)
        elapsed = time.perf_counter_ns() - begin
        buffer.close()
        del buffer
        memory.close()
        return elapsed / 1e6
    begin = time.perf_counter_ns()
    buffer = plane.buffer(length_bytes, kind="huge" if kind.how == MEMFD_HUGE else "pages")
    _touched(buffer, page_bytes)
    elapsed = time.perf_counter_ns() - begin
    buffer.close()
    return elapsed / 1e6


def _locked_kib() -> int:
    for line in pathlib.Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmLck:"):
            return int(line.split()[1])
    return 0


def _locks(plane: Plane, kind: Kind, length_bytes: int) -> bool:
    """Whether the plane keeps such a buffer locked."""
    before = _locked_kib()
    memory = None
    if kind.how == PRIVATE:
        memory = mmap.mmap(-1, length_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        buffer = plane.buffer(user=memory)
    else:
        buffer = plane.buffer(length_bytes, kind="huge" if kind.how == MEMFD_HUGE else "pages")
    grown = _locked_kib() - before
    buffer.close()
    del buffer
    if memory is not None:
        memory.close()
    return grown * 1024 >= length_bytes


def _one(plane: Plane, kind: Kind, length_bytes: int, page_bytes: int, pairs: int) -> _result.Row:
    lock = _locks(plane, kind, 64 << 20)
    mine, other = _result.interleaved(
        pairs,
        lambda: _ours_ms(plane, kind, length_bytes, page_bytes),
        lambda: _loops.allocate(kind.how, length_bytes, page_bytes, lock=lock) / 1e6,
    )
    peer = f"{kind.peer}, mlock" if lock else kind.peer
    return _result.paired_row(_case(kind, length_bytes), "ms", mine, peer, other)


def _case(kind: Kind, length_bytes: int) -> str:
    return f"{kind.name}, {length_bytes >> 20} MiB"


def measure(plane_name: str, quick: bool, report: Callable[[str], None]) -> _result.Measured:
    """The bench. 1 GiB and about 30 s; with @quick 256 MiB and 5 s."""
    length_bytes, pairs = (256 << 20, 5) if quick else (1 << 30, 7)
    with _loops.opened(plane_name) as plane:
        measured = _result.Measured(plane.name)
        for kind in KINDS:
            report(_case(kind, length_bytes))
            claim = f"alloc/{kind.name}"
            if kind.how != MEMFD_HUGE:
                page_bytes = plane.limits.page_bytes
                measured.add(_one(plane, kind, length_bytes, page_bytes, pairs), claim)
                continue
            page_bytes = plane.limits.huge_page_bytes
            empty = _result.empty_row(_case(kind, length_bytes), "ms")
            if not page_bytes:
                measured.skip(empty, claim, "this machine has no huge pages")
                continue
            with _pool.huge_pages(max(length_bytes, 64 << 20), page_bytes) as reason:
                if reason is not None:
                    measured.skip(empty, claim, reason)
                    continue
                try:
                    measured.add(_one(plane, kind, length_bytes, page_bytes, pairs), claim)
                except DmaplaneError as error:
                    measured.skip(empty, claim, str(error))
    return measured
