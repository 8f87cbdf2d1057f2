# SPDX-License-Identifier: MIT
"""Somebody on the wire between two ends of a TCP connection."""

from __future__ import annotations

import contextlib
import socket
import threading

from dmaplane.testing import _rig


class Tap:
    """A relay in the middle of a connection that hears all, and may change a byte."""

    def __init__(self, bound: str) -> None:
        self.heard = bytearray()
        self.spoil_after: int | None = None
        host, _, port = bound.rpartition(":")
        self._target = (host, int(port))
        self._door = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._door.getsockname()[1]}"
        self._sockets = [self._door]
        self._threads = [threading.Thread(target=self._serve, daemon=True)]
        self._threads[0].start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                caller, _ = self._door.accept()
                callee = socket.create_connection(self._target)
                self._sockets += [caller, callee]
                for one, other in ((caller, callee), (callee, caller)):
                    pump = threading.Thread(target=self._pump, args=(one, other), daemon=True)
                    self._threads.append(pump)
                    pump.start()

    def _pump(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while said := one.recv(65536):
                self.heard += said
                if self.spoil_after is not None and len(self.heard) > self.spoil_after:
                    said = said[:-1] + bytes([said[-1] ^ 1])
                    self.spoil_after = None
                other.sendall(said)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join(_rig.PATIENCE_S)
