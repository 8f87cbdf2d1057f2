# SPDX-License-Identifier: MIT
"""What the peers that are Python packages have in common: see _peers.py for how they are run.

A peer is two processes, the one that is written to a child of the one that writes. They
are forked before the package is imported, as most of them start threads. Both end
by os._exit(): not all of them survive a normal exit.
"""

from __future__ import annotations

import mmap
import os
import signal
import socket
import sys
import traceback
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dmaplane import _abi

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt


class Memory(NamedTuple):
    """This side's part of the memory."""

    address: int
    length_bytes: int


def _mapped(fd: int, length_bytes: int) -> npt.NDArray[np.uint8]:
    return np.frombuffer(mmap.mmap(fd, length_bytes), dtype=np.uint8)


def run(
    target: Callable[[Memory, socket.socket], None],
    writer: Callable[
        [Memory, socket.socket], tuple[str, Callable[[npt.NDArray[np.void], int], int]]
    ],
) -> None:
    """Runs a peer.

    @target: is told what memory to offer, serves the socket's other end until it ends. @writer:
    connects; gives a version and what writes rows: (rows, window) to nanoseconds.
    """
    source_fd, target_fd, rows_fd, length_bytes, rows_count = map(int, sys.argv[1:6])
    mine, theirs = socket.socketpair()
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what a package prints is no answer
    parent = os.getpid()
    child = os.fork()
    try:
        if not child:
            mine.close()
            view = _mapped(target_fd, length_bytes)
            target(Memory(view.ctypes.data, length_bytes), theirs)
            os._exit(0)
        theirs.close()
        view = _mapped(source_fd, length_bytes)
        rows = _mapped(rows_fd, rows_count * _abi.SUBMISSION.itemsize).view(_abi.SUBMISSION)
        version, write = writer(Memory(view.ctypes.data, length_bytes), mine)
        print(version, file=answers, flush=True)
        for line in sys.stdin:
            word, count, window = line.split()
            assert word == "write"
            print(write(rows[: int(count)], int(window)), file=answers, flush=True)
    except BaseException:
        traceback.print_exc()
    finally:
        if os.getpid() == parent:
            os.kill(child, signal.SIGKILL)
        os._exit(1)
