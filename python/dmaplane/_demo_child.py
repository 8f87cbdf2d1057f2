# SPDX-License-Identifier: MIT
"""The demo's second process: imports the buffer, verifies it, copies until it is killed.

It speaks JSON over the socket it inherits: first what it found, then, once it
is well into its copies, that it is. It ends by itself only when the parent does.
"""

from __future__ import annotations

import json
import socket
import sys
from typing import Final

import dmaplane

COPY_BYTES_MAX: Final = 64 << 20
COPIES_BEFORE_SAYING_SO: Final = 8
STEP_S: Final = 60.0


def main() -> None:
    """The descriptor of our end of the socketpair is the only argument."""
    with socket.socket(fileno=int(sys.argv[1])) as parent:
        try:
            serve(parent)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the parent is gone
        except dmaplane.DmaplaneError as error:
            parent.send(json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())


def serve(parent: socket.socket) -> None:
    """Copies for as long as the parent is there."""
    said, descriptors, _, _ = socket.recv_fds(parent, 65536, 1)
    request = json.loads(said)
    with (
        dmaplane.open(plane=request["plane"]) as plane,
        plane.import_buffer(descriptors[0], read_only=True) as given,
    ):
        length = request["length_bytes"]
        found = dmaplane.crc32c(given[:length].memory())
        parent.send(json.dumps({"checksum": found}).encode())
        if found != request["checksum"]:
            return
        part = min(length, COPY_BYTES_MAX)
        with plane.buffer(part) as own, plane.channel(slots=1) as channel:
            parent.setblocking(False)
            for copies in range(1, sys.maxsize):
                channel.copy(own, given[:part]).wait(timeout=STEP_S)
                if copies == COPIES_BEFORE_SAYING_SO:
                    parent.send(json.dumps({"bytes": plane.statistics().bytes}).encode())
                if _ended(parent):
                    return


def _ended(parent: socket.socket) -> bool:
    try:
        return not parent.recv(1)
    except BlockingIOError:
        return False


if __name__ == "__main__":
    main()
