# SPDX-License-Identifier: MIT
"""libdmaplane-bench: the timed loops in C, and how to reach a channel from them."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
from typing import TYPE_CHECKING, Final

import numpy as np

import dmaplane
from dmaplane import _abi, _library
from dmaplane._errors import UnsupportedError, error_from

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    import numpy.typing as npt
    from typing_extensions import Self

    from dmaplane._plane import Plane

LOOPS_NAME: Final = "libdmaplane-bench.so"
BLIND_NAME: Final = "libdmaplane-blind.so"

_POINTER: Final = ctypes.c_void_p
_U32: Final = ctypes.c_uint32
_U64: Final = ctypes.c_uint64
_INT: Final = ctypes.c_int
_PROTOTYPES: Final = {
    "dmp_bench_memcpy": (_POINTER, _POINTER, _POINTER, _U64, _POINTER),
    "dmp_bench_stream": (
        *(_POINTER, _POINTER, _POINTER, _U64, _U32, _U32),
        *(_POINTER, _U32, _POINTER),
    ),
    "dmp_bench_round_robin": (
        *(_POINTER, _POINTER, _U32, _POINTER, _U32, _U64),
        *(_POINTER, _U32, _POINTER),
    ),
    "dmp_bench_commands": (_POINTER, _POINTER, ctypes.c_uint, _POINTER, _U64, _U64, _POINTER),
    "dmp_bench_wakeups": (_INT, _U64, _POINTER),
    "dmp_bench_allocate": (_INT, _U64, _U64, _INT, _POINTER),
    "dmp_bench_touch": (_POINTER, _U64, _U64, _POINTER),
    "dmp_bench_drain": (_POINTER, _POINTER, _U64, _U32, _POINTER, _POINTER),
    "dmp_bench_pingpong": (_POINTER, _POINTER, _POINTER, _INT, _U64, _POINTER),
    "dmp_bench_messages": (_POINTER, _POINTER, _POINTER, _INT, _U64, _POINTER),
    "dmp_bench_socket_send": (_INT, _POINTER, _POINTER, _U64, _POINTER),
    "dmp_bench_socket_receive": (_INT, _POINTER, _POINTER, _U64),
    "dmp_bench_socket_pingpong": (_INT, _INT, _U64, _POINTER),
}


@functools.lru_cache(maxsize=1)
def _loops() -> ctypes.CDLL:
    path = _library.library_path().with_name(LOOPS_NAME)
    try:
        loaded = ctypes.CDLL(str(path))
        for name, arguments in _PROTOTYPES.items():
            function = getattr(loaded, name)
            function.restype = _INT
            function.argtypes = arguments
    except (OSError, AttributeError) as reason:
        raise UnsupportedError(
            "benches",
            f"{LOOPS_NAME} next to {_library.LIBRARY_NAME}, and {path} could not be loaded "
            f"({reason}): install the dmaplane wheel, or build both with `make`",
        ) from reason
    return loaded


def _called(name: str, *arguments: object) -> None:
    """Calls a loop; its errno raised."""
    answer: int = getattr(_loops(), name)(*arguments)
    if answer:
        raise error_from(answer, name)


def _timed(name: str, *arguments: object) -> int:
    """Calls a loop; nanoseconds, or its errno raised."""
    elapsed = ctypes.c_uint64()
    _called(name, *arguments, ctypes.byref(elapsed))
    return elapsed.value


@contextlib.contextmanager
def opened(plane: str, library: str | None = None) -> Iterator[Plane]:
    """A plane; with @library, of that build instead, which lies next to the usual one."""
    if library is None:
        with dmaplane.open(plane) as given:  # type: ignore[arg-type]
            yield given
        return
    path = _library.library_path().with_name(library)
    if not path.exists():
        raise UnsupportedError(
            "this bench", f"{library} next to {_library.LIBRARY_NAME}: build it with `make`"
        )
    before = os.environ.get(_library.LIBRARY_VARIABLE)
    os.environ[_library.LIBRARY_VARIABLE] = str(path)
    try:
        built = dmaplane.open("embedded")
    finally:
        if before is None:
            del os.environ[_library.LIBRARY_VARIABLE]
        else:
            os.environ[_library.LIBRARY_VARIABLE] = before
    with built:
        yield built


class RawChannel:
    """A channel that only C touches: no Operation, no eventfd, no bookkeeping in Python."""

    def __init__(self, plane: Plane, slots: int, spin_us: int | None = None) -> None:
        self._plane = plane
        completion_slots = min(2 * slots, plane.limits.slots_max)
        made = _abi.ChannelCreate(
            flags=0 if spin_us is None else _abi.CHANNEL_SPIN,
            slots=slots,
            completion_slots=completion_slots,
            spin_us=spin_us or 0,
        )
        plane.call("CHANNEL_CREATE", _abi.CHANNEL_CREATE, made)
        self._id: int = made.channel_id
        self._map_bytes: int = made.map_bytes
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        self._address = plane._map(made.map_bytes, protection, made.map_offset)
        if self._address < 0:
            raise error_from(self._address, "mmap", f"channel {self._id}")
        self.slots = slots
        self._client = _library.Client(
            control=self._address,
            submissions=self._address + made.submissions_offset,
            completions=self._address + made.completions_offset,
            slots=slots,
            completion_slots=completion_slots,
            channel_id=self._id,
        )
        self.client_at = ctypes.addressof(self._client)
        exchange = plane._attach(self._client).waiting.dmp_client_exchange
        self.exchange = ctypes.cast(exchange, _POINTER)
        self.completions = np.zeros(completion_slots, dtype=_abi.COMPLETION)

    def stream(self, rows: npt.NDArray[np.void], *, batch: int, window: int) -> int:
        """Nanoseconds for all @rows, @batch an exchange, at most @window in flight."""
        window = min(window, self.slots)
        return _timed(
            "dmp_bench_stream",
            self.exchange,
            self.client_at,
            rows.ctypes.data,
            len(rows),
            min(batch, window),
            window,
            self.completions.ctypes.data,
            len(self.completions),
        )

    @property
    def id(self) -> int:
        """Of the channel."""
        return self._id

    def drain(self, count: int, wait: int) -> tuple[int, int]:
        """Takes @count immediates of a peer, @wait at a time: their sum, and when it was done."""
        immediates, end = ctypes.c_uint64(), ctypes.c_uint64()
        _called(
            "dmp_bench_drain",
            self.exchange,
            self.client_at,
            count,
            min(wait, self.slots),
            ctypes.byref(immediates),
            ctypes.byref(end),
        )
        return immediates.value, end.value

    def pingpong(
        self, row: npt.NDArray[np.void], count: int, *, first: bool
    ) -> npt.NDArray[np.uint64]:
        """Nanoseconds of each of @count round trips of @row, with the other side doing the same."""
        each = np.zeros(count, dtype=np.uint64)
        _called(
            "dmp_bench_pingpong",
            self.exchange,
            self.client_at,
            row.ctypes.data,
            int(first),
            count,
            each.ctypes.data,
        )
        return each

    def messages(
        self, rows: npt.NDArray[np.void], count: int, *, first: bool
    ) -> npt.NDArray[np.uint64]:
        """Nanoseconds of each of @count messages there and back; @rows: a SEND, a RECV."""
        each = np.zeros(count, dtype=np.uint64)
        _called(
            "dmp_bench_messages",
            self.exchange,
            self.client_at,
            rows.ctypes.data,
            int(first),
            count,
            each.ctypes.data,
        )
        return each

    def close(self) -> None:
        """Unmaps and ends it."""
        self._plane._unmap(self._address, self._map_bytes)
        self._plane.call("CHANNEL_DESTROY", _abi.CHANNEL_DESTROY, _abi.Destroy(id=self._id))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def round_robin(channels: Sequence[RawChannel], rows: npt.NDArray[np.void], turns: int) -> int:
    """Nanoseconds for @turns batches of the same @rows, each on the next of @channels."""
    clients = (_POINTER * len(channels))(*(channel.client_at for channel in channels))
    completions = channels[0].completions
    return _timed(
        "dmp_bench_round_robin",
        channels[0].exchange,
        clients,
        len(channels),
        rows.ctypes.data,
        len(rows),
        turns,
        completions.ctypes.data,
        len(completions),
    )


def memcpy(
    target: npt.NDArray[np.uint8], source: npt.NDArray[np.uint8], rows: npt.NDArray[np.void]
) -> int:
    """Nanoseconds for plain memcpy of what @rows say."""
    return _timed(
        "dmp_bench_memcpy", target.ctypes.data, source.ctypes.data, rows.ctypes.data, len(rows)
    )


def allocate(how: int, length_bytes: int, page_bytes: int, *, lock: bool) -> int:
    """Nanoseconds for the bare system calls; the memory is given back."""
    return _timed("dmp_bench_allocate", how, length_bytes, page_bytes, int(lock))


def touch(address: int, length_bytes: int, page_bytes: int) -> int:
    """Nanoseconds to write one byte of every page."""
    return _timed("dmp_bench_touch", address, length_bytes, page_bytes)


def wakeups(*, spin: bool, count: int) -> npt.NDArray[np.uint64]:
    """Nanoseconds of each of @count round trips between two threads, by eventfd or a word."""
    each = np.zeros(count, dtype=np.uint64)
    _called("dmp_bench_wakeups", int(spin), count, each.ctypes.data)
    return each


def socket_send(fd: int, source: npt.NDArray[np.uint8], rows: npt.NDArray[np.void]) -> int:
    """Nanoseconds until the other side of a socket has all of @rows in place."""
    return _timed("dmp_bench_socket_send", fd, source.ctypes.data, rows.ctypes.data, len(rows))


def socket_receive(fd: int, target: npt.NDArray[np.uint8], rows: npt.NDArray[np.void]) -> None:
    """The other side of socket_send()."""
    _called("dmp_bench_socket_receive", fd, target.ctypes.data, rows.ctypes.data, len(rows))


def socket_pingpong(fd: int, count: int, *, first: bool) -> npt.NDArray[np.uint64]:
    """Nanoseconds of each of @count round trips of one byte, with the other side doing the same."""
    each = np.zeros(count, dtype=np.uint64)
    _called("dmp_bench_socket_pingpong", fd, int(first), count, each.ctypes.data)
    return each


def nop_rows(count: int) -> npt.NDArray[np.void]:
    """NOPs numbered from 0."""
    rows = np.zeros(count, dtype=_abi.SUBMISSION)
    rows["user_data"] = np.arange(count, dtype=np.uint64)
    return rows
