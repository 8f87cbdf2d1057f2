# SPDX-License-Identifier: MIT
"""libdmaplane.so: found, loaded once, and given its argument types.

DMAPLANE_LIBRARY=path.so wins; else the file the wheel carries next to this
module. The same file is opened twice: `waiting` lets go of the interpreter lock
during a call, `quick` keeps it. Quick is for calls that cannot sleep: giving
the lock away costs nothing when nobody wants it, and a whole switch interval
(5 ms) when somebody does.
"""

from __future__ import annotations

import ctypes
import functools
import os
import pathlib
from typing import Final, NamedTuple

from dmaplane._errors import UnsupportedError

LIBRARY_VARIABLE: Final = "DMAPLANE_LIBRARY"
LIBRARY_NAME: Final = "libdmaplane.so"


class Client(ctypes.Structure):
    """struct dmp_client of libdmaplane.h: the user's side of a channel's rings."""

    _fields_ = (
        ("control", ctypes.c_void_p),
        ("submissions", ctypes.c_void_p),
        ("completions", ctypes.c_void_p),
        ("slots", ctypes.c_uint32),
        ("completion_slots", ctypes.c_uint32),
        ("channel_id", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("plane", ctypes.c_void_p),
        ("fd", ctypes.c_int64),
    )


class Library(NamedTuple):
    """The loaded library, once per way to call it."""

    path: str
    waiting: ctypes.CDLL
    quick: ctypes.PyDLL


_POINTER: Final = ctypes.c_void_p
_U32: Final = ctypes.c_uint32
_U64: Final = ctypes.c_uint64
_PROTOTYPES: Final = {
    "dmp_open": (ctypes.c_int, (_POINTER,)),
    "dmp_close": (ctypes.c_int, (_POINTER,)),
    "dmp_ioctl": (ctypes.c_int, (_POINTER, ctypes.c_uint, _POINTER)),
    "dmp_mmap": (ctypes.c_int, (_POINTER, ctypes.c_size_t, ctypes.c_int, _U64, _POINTER)),
    "dmp_munmap": (ctypes.c_int, (_POINTER, _POINTER)),
    "dmp_poll": (ctypes.c_int, (_POINTER, _U64)),
    "dmp_client_exchange": (
        ctypes.c_int,
        (_POINTER, _POINTER, _U32, _POINTER, _POINTER, _U32, _U32, _U64),
    ),
    "dmp_client_arm": (ctypes.c_int, (_POINTER, _U32)),
    "dmp_crc32c": (_U32, (_U32, _POINTER, ctypes.c_size_t)),
    "dmp_crc32c_groups": (None, (*[_POINTER] * 4, ctypes.c_size_t, _POINTER)),
    "dmp_now_ns": (_U64, ()),
    "dmp_verbs_missing": (ctypes.c_char_p, ()),
    "dmp_verbs_refused": (ctypes.c_char_p, (ctypes.c_int,)),
}


_BESIDE: Final = str(pathlib.Path(__file__).with_name(LIBRARY_NAME))


def library_path() -> pathlib.Path:
    """Where the library is expected; says nothing about whether it is there."""
    return pathlib.Path(os.environ.get(LIBRARY_VARIABLE) or _BESIDE)


@functools.lru_cache(maxsize=4)
def _load(path: str) -> Library:
    waiting, quick = ctypes.CDLL(path), ctypes.PyDLL(path)
    for name, (result, arguments) in _PROTOTYPES.items():
        for loaded in (waiting, quick):
            function = getattr(loaded, name)
            function.restype = result
            function.argtypes = arguments
    return Library(path, waiting, quick)


def load(needed_by: str = "the embedded plane") -> Library:
    """Loads libdmaplane; UnsupportedError, with the fix, if that cannot be done."""
    path = os.environ.get(LIBRARY_VARIABLE) or _BESIDE  # every message is summed: no Path here
    try:
        return _load(path)
    except (OSError, AttributeError) as reason:
        raise UnsupportedError(
            needed_by,
            f"{LIBRARY_NAME}, and {path} could not be loaded ({reason}): "
            f"install the dmaplane wheel, or set {LIBRARY_VARIABLE} to a library built with `make`",
        ) from reason


def crc32c(data: bytes | bytearray | memoryview, seed: int = 0) -> int:
    """CRC32C of @data, as completions carry it; @seed is the CRC of what came before."""
    summed = load().waiting.dmp_crc32c
    if isinstance(data, bytes):
        return int(summed(seed, data, len(data)))
    import numpy as np

    array = np.frombuffer(data, dtype=np.uint8)
    return int(summed(seed, array.ctypes.data, array.nbytes))


def verbs_missing() -> str:
    """The first broken link on the way to RDMA, and what mends it; empty if there is none."""
    return bytes(load().waiting.dmp_verbs_missing()).decode()


def verbs_refused(errno: int) -> str:
    """Why memory was last not registered with an RDMA device, if @errno came of it; else empty."""
    if not _load.cache_info().currsize:
        return ""  # no embedded plane was ever opened here
    return bytes(load().waiting.dmp_verbs_refused(abs(errno))).decode(errors="replace")


def now_ns() -> int:
    """CLOCK_MONOTONIC in nanoseconds: the clock of every deadline."""
    import time

    return time.monotonic_ns()
