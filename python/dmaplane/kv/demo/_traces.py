# SPDX-License-Identifier: MIT
"""What servers may leave behind when they have ended: processes, shared memory, sockets.

Looked for before and after: names in shared memory, children of this process, memory files of the
planes that others hold, and the ports that were listened to.
"""

from __future__ import annotations

import os
import socket
import time
from typing import Any, Final

PATIENCE_S: Final = 1.0
"""kill -9 gives everything back within this (L4), and so does an end in peace."""
_SHARED: Final = "/dev/shm"


class Before:
    """What there was before the servers were started; left() compares."""

    def __init__(self) -> None:
        self._names = _names()
        self._children = _children()
        self._ports: list[tuple[str, int]] = []

    def watch(self, decode: dict[str, Any], *, both: bool) -> None:
        """The addresses the decode server told of: its own, and with @both its prefill server's."""
        for address in (decode["http"], *((decode["prefill"],) if both else ())):
            host, _, port = address.rpartition(":")
            self._ports.append((host, int(port)))

    def left(self) -> tuple[str, ...]:
        """What is there now and was not; waits a moment for what is on its way out."""
        until = time.monotonic() + PATIENCE_S
        while (found := self._found()) and time.monotonic() < until:
            time.sleep(0.01)
        return found

    def _found(self) -> tuple[str, ...]:
        names = sorted(_names() - self._names)
        children = sorted(_children() - self._children)
        ports = [where for where in self._ports if _answers(where)]
        return (
            *(f"shared memory {_SHARED}/{name}" for name in names if "dmaplane" in name),
            *(f"process {pid}" for pid in children),
            *(f"a listener at {host}:{port}" for host, port in ports),
        )


def _names() -> set[str]:
    try:
        return set(os.listdir(_SHARED))
    except OSError:
        return set()


def _children() -> set[int]:
    """Processes whose parent this one is, those that nobody waited for included."""
    found = set()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                parent = int(file.read().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it ended while we looked
        if parent == os.getpid():
            found.add(int(name))
    return found


def _answers(where: tuple[str, int]) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(where) == 0
