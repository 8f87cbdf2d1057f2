# SPDX-License-Identifier: MIT
"""The kernel's log: what is said between two moments, and what must never be said.

Read in the guest by the tests' fixtures, and on the host from the serial log.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import TracebackType

SPLAT = re.compile(
    r"BUG:|WARNING:|\bOops\b|Kernel panic|general protection|KASAN|UBSAN"
    r"|possible .*lock(ing|dep)|inconsistent lock|suspicious RCU|sleeping function"
    r"|refcount_t|corruption|DMA-API:.*(free|leak|mapping|overlap|sync|unmap)"
    r"|rcu.*stall|soft lockup|blocked for more|Bad page|bad page|ODEBUG"
    r"|scheduling while atomic|list_(add|del)|page allocation failure|held lock"
)
# Said at every boot of some of our kernels, before a test runs.
HARMLESS = re.compile(
    r"KernelAddressSanitizer initialized|kmemleak: (Kernel memory leak detector|Automatic)"
    r"|UBSAN: .*enabled|DMA-API: (preallocated|debugging enabled|disabled)"
    r"|dmaplane-test: |rcu: .*(?:offload|stall.*timeout)|Kernel command line"
)
# An out-of-tree module and an unsigned one: both are what we are.
TAINT_EXPECTED = 4096 | 8192


def is_splat(line: str) -> bool:
    """True for a line of the kernel's log that no test may cause.

    What kmemleak suspects is not among them: the tests ask it when all is released.
    """
    return bool(SPLAT.search(line)) and not HARMLESS.search(line)


def taint() -> int:
    """What has tainted the kernel, but for our own module."""
    return int(Path("/proc/sys/kernel/tainted").read_text()) & ~TAINT_EXPECTED


def lockdep_is_on() -> bool:
    """True as well where the kernel has no lockdep."""
    path = Path("/proc/lockdep_stats")
    return not path.exists() or "debug_locks:                             1" in path.read_text()


class Reader:
    """What the kernel says from the moment this is made; a context manager."""

    def __init__(self) -> None:
        self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(self._fd, 0, os.SEEK_END)

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._fd)

    def lines(self) -> list[str]:
        """What was said since the last call, a line each."""
        found: list[str] = []
        while True:
            try:
                record = os.read(self._fd, 8192)
            except BlockingIOError:
                return found
            except BrokenPipeError:
                found.append("(some lines were overwritten before they were read)")
                continue
            text = record.decode(errors="replace").split("\n", 1)[0]
            found.append(text.partition(";")[2])


def write(text: str) -> None:
    """Puts a line of ours into the kernel's log."""
    with open("/dev/kmsg", "w") as log:
        log.write(f"{text}\n")
