# SPDX-License-Identifier: MIT
"""ibv_reg_mr by hand, as a program without dmaplane would call it: the peer of a bench."""

from __future__ import annotations

import ctypes
import mmap
import time
from typing import TYPE_CHECKING, Final

import numpy as np

from dmaplane._errors import DmaplaneError

if TYPE_CHECKING:
    from collections.abc import Callable

_LOCAL_WRITE: Final = 1
_REMOTE_WRITE: Final = 2
_REMOTE_READ: Final = 4


def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libibverbs.so.1", use_errno=True)
    except OSError as error:
        raise DmaplaneError(f"no libibverbs: {error}; install rdma-core") from error
    pointer, pointers = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)
    shapes: dict[str, tuple[list[object], object]] = {
        "ibv_get_device_list": ([ctypes.POINTER(ctypes.c_int)], pointers),
        "ibv_free_device_list": ([pointers], None),
        "ibv_get_device_name": ([pointer], ctypes.c_char_p),
        "ibv_open_device": ([pointer], pointer),
        "ibv_close_device": ([pointer], ctypes.c_int),
        "ibv_alloc_pd": ([pointer], pointer),
        "ibv_dealloc_pd": ([pointer], ctypes.c_int),
        "ibv_reg_mr": ([pointer, pointer, ctypes.c_size_t, ctypes.c_int], pointer),
        "ibv_dereg_mr": ([pointer], ctypes.c_int),
    }
    for name, (arguments, answer) in shapes.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, answer
    return library


class Registrar:
    """A protection domain on a device, and touched anonymous memory to register there."""

    def __init__(self, device_name: str, length_bytes: int) -> None:
        self._library = _library()
        self._undo: list[Callable[[], object]] = []
        self._memory = mmap.mmap(-1, length_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        view = np.frombuffer(self._memory, dtype=np.uint8)
        view[::4096] = 1
        self._address = view.ctypes.data
        self._length_bytes = length_bytes
        self._undo.append(self._memory.close)
        del view
        try:
            self._domain = self._open(device_name)
        except BaseException:
            self.close()
            raise

    def _open(self, device_name: str) -> int:
        library, count = self._library, ctypes.c_int()
        devices = library.ibv_get_device_list(ctypes.byref(count))
        if not devices:
            raise DmaplaneError("libibverbs lists no devices")
        try:
            names = [library.ibv_get_device_name(devices[index]) for index in range(count.value)]
            if device_name.encode() not in names:
                raise DmaplaneError(f"libibverbs knows no device {device_name}")
            context = library.ibv_open_device(devices[names.index(device_name.encode())])
        finally:
            library.ibv_free_device_list(devices)
        if not context:
            raise DmaplaneError(f"{device_name} does not open")
        self._undo.append(lambda: library.ibv_close_device(context))
        domain = library.ibv_alloc_pd(context)
        if not domain:
            raise DmaplaneError(f"{device_name} gives no protection domain")
        self._undo.append(lambda: library.ibv_dealloc_pd(domain))
        return int(domain)

    def register_ns(self) -> int:
        """One ibv_reg_mr of all of it; ending it is not counted."""
        access = _LOCAL_WRITE | _REMOTE_WRITE | _REMOTE_READ
        begin = time.perf_counter_ns()
        registered = self._library.ibv_reg_mr(
            self._domain, self._address, self._length_bytes, access
        )
        elapsed = time.perf_counter_ns() - begin
        if not registered:
            raise DmaplaneError("ibv_reg_mr failed", errno=ctypes.get_errno())
        self._library.ibv_dereg_mr(registered)
        return elapsed

    def close(self) -> None:
        """Lets go of domain, device and memory; idempotent."""
        while self._undo:
            self._undo.pop()()
