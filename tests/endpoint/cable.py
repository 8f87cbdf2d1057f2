# SPDX-License-Identifier: MIT
"""Two network namespaces and a cable between them: other hosts, as far as a plane can tell."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator
from typing import Any

from peers import enter_namespace
from reach import FIELDS

import dmaplane
from dmaplane.testing._rig import MIB

SECRET = "two namespaces, one secret"
NEAR, FAR = "10.73.91.1", "10.73.91.2"


SERVER: dict[str, Any] = {
    "address": f"{FAR}:0",
    "secret": SECRET,
    "length_bytes": 64 * MIB,
    "fill": 3,
    "fields": FIELDS,
}


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


class Cable:
    """Two namespaces, named after this process, and a pair of virtual devices between them."""

    def __init__(self) -> None:
        self.names = (f"dmp{os.getpid()}a", f"dmp{os.getpid()}b")

    def lay(self) -> None:
        near, far = self.names
        for name in self.names:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", near, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", far)
        for name, address in ((near, NEAR), (far, FAR)):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "wire")
            _ip("-n", name, "link", "set", "wire", "up")

    def pull(self) -> None:
        """The link goes down: nothing is said to either end of a connection."""
        _ip("-n", self.names[1], "link", "set", "wire", "down")

    def plug(self) -> None:
        """It comes back."""
        _ip("-n", self.names[1], "link", "set", "wire", "up")

    def disturb(self, *netem: str) -> None:
        """Delay, loss, ...: words of tc-netem(8), for what leaves either end."""
        for name in self.names:
            words = ["tc", "-n", name, "qdisc", "replace", "dev", "wire", "root", "netem", *netem]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"

    def clear(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


@contextlib.contextmanager
def inside(name: str) -> Iterator[dmaplane.Plane]:
    """A plane whose threads and sockets are in a namespace; this thread comes back out of it."""
    with open("/proc/thread-self/ns/net", "rb") as own:
        enter_namespace(name)
        try:
            with dmaplane.open(plane="embedded") as plane:
                yield plane
        finally:
            assert ctypes.CDLL(None).setns(own.fileno(), 0) == 0
