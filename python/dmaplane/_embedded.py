# SPDX-License-Identifier: MIT
"""The embedded plane: libdmaplane inside this process, reached through ctypes."""

from __future__ import annotations

import ctypes
import errno
from typing import TYPE_CHECKING

from dmaplane import _library
from dmaplane._errors import error_from
from dmaplane._plane import Plane

if TYPE_CHECKING:
    from collections.abc import Callable


class EmbeddedPlane(Plane):
    """A plane served by libdmaplane: no module, no root, no hardware."""

    name = "embedded"

    def __init__(self, reason: str) -> None:
        library = _library.load()
        handle = ctypes.c_void_p()
        answer = library.waiting.dmp_open(ctypes.byref(handle))
        if answer:
            raise error_from(answer, "open")
        self._library = library
        self._ioctl: Callable[..., int] = library.waiting.dmp_ioctl
        self._handle: int = handle.value or 0
        super().__init__(reason)

    def _command(self, number: int, struct: ctypes.Structure | ctypes.Array[ctypes.c_char]) -> int:
        return self._ioctl(self._handle, number, ctypes.addressof(struct))

    def _map(self, length_bytes: int, protection: int, map_offset: int) -> int:
        address = ctypes.c_void_p()
        answer: int = self._library.waiting.dmp_mmap(
            self._handle, length_bytes, protection, map_offset, ctypes.byref(address)
        )
        return answer if answer < 0 else address.value or -errno.EFAULT

    def _unmap(self, address: int, length_bytes: int) -> int:
        answer: int = self._library.waiting.dmp_munmap(self._handle, address)
        return answer

    def _poll(self, deadline_ns: int) -> int:
        answer: int = self._library.waiting.dmp_poll(self._handle, deadline_ns)
        return answer

    def _end(self) -> int:
        handle, self._handle = self._handle, 0
        answer: int = self._library.waiting.dmp_close(handle)
        return answer

    def _attach(self, client: _library.Client) -> _library.Library:
        client.plane = self._handle
        client.fd = -1
        return self._library
