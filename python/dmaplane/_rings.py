# SPDX-License-Identifier: MIT
"""The two rings of a channel as they lie in memory, and the calls that reach into them.

Rings owns the mapping, and everything a call of the library needs: pointers and 64-bit
numbers are objects made once, and the calls that repeat are made with their arguments
beforehand, which halves the cost of one. Only whoever owns the turn (see _taking.py) may
pop; whoever pushes or arms holds `push_lock`.

`refusal` is None while the rings may be touched. After that it says why not; it is set
before the mapping goes, and who holds the lock or the turn has looked at it.
"""

from __future__ import annotations

import ctypes
import functools
import struct
import threading
from typing import TYPE_CHECKING, Final

import numpy as np

from dmaplane import _abi, _library
from dmaplane._errors import ClosedError, error_from
from dmaplane._storage import PROT_READ, PROT_WRITE

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from dmaplane._plane import Plane

ROW: Final = struct.Struct("<HHIQQ40sII")
"""struct dmp_submission, its operands as one, and the count pushed."""
WRITE_ROW: Final = struct.Struct("<HHIQQ32sIIII")
"""The same, with the immediate and the checksum apart from the rest of the operands."""
NO_DEADLINE: Final = ctypes.c_uint64(0)
_PROT_BOTH: Final = PROT_READ | PROT_WRITE


class Rings:
    """Mapped submission and completion rings, and who enters the plane for them."""

    def __init__(self, plane: Plane, made: _abi.ChannelCreate) -> None:
        self.plane = plane
        self.channel_id: int = made.channel_id
        self.refusal: str | None = None
        self.slots: int = made.slots
        self.completion_slots: int = made.completion_slots or min(
            2 * made.slots, plane.limits.slots_max
        )
        self._map_bytes: int = made.map_bytes
        address = plane._map(made.map_bytes, _PROT_BOTH, made.map_offset)
        if address < 0:
            raise error_from(address, "mmap", f"channel {made.channel_id}")
        self._address = address
        self.control = _abi.RingControl.from_address(address)
        self._client = _library.Client(
            control=address,
            submissions=address + made.submissions_offset,
            completions=address + made.completions_offset,
            slots=self.slots,
            completion_slots=self.completion_slots,
            channel_id=self.channel_id,
        )
        library = plane._attach(self._client)
        # Looked up anew, these carry no argument types, so objects pass as they are.
        exchange: Callable[..., int] = library.quick["dmp_client_exchange"]
        exchange_waiting: Callable[..., int] = library.waiting["dmp_client_exchange"]
        client_at = ctypes.c_void_p(ctypes.addressof(self._client))

        self.push_lock = threading.Lock()
        self.row = (ctypes.c_char * ROW.size)()
        self.row_pushed = ctypes.c_uint32.from_buffer(self.row, _abi.SUBMISSION.itemsize)
        self.push_row = functools.partial(
            exchange,
            client_at,
            ctypes.c_void_p(ctypes.addressof(self.row)),
            1,
            ctypes.c_void_p(ctypes.addressof(self.row_pushed)),
            None,
            0,
            0,
            NO_DEADLINE,
        )
        """Pushes `row`; 0 or a negative errno."""
        self.pushed = ctypes.c_uint32()
        self._push = functools.partial(exchange, client_at)
        self._push_rest = (
            ctypes.c_void_p(ctypes.addressof(self.pushed)),
            None,
            0,
            0,
            NO_DEADLINE,
        )

        self.popped = np.zeros(self.completion_slots, dtype=_abi.COMPLETION)
        self._unused = ctypes.c_uint32()
        self.pop = functools.partial(
            exchange_waiting,
            client_at,
            None,
            0,
            ctypes.c_void_p(ctypes.addressof(self._unused)),
            ctypes.c_void_p(self.popped.ctypes.data),
            self.completion_slots,
        )
        """Waits for a count until a deadline, pops into `popped`; how many, or -errno."""
        self.push_row_and_pop = functools.partial(
            exchange_waiting,
            client_at,
            ctypes.c_void_p(ctypes.addressof(self.row)),
            1,
            ctypes.c_void_p(ctypes.addressof(self.row_pushed)),
            ctypes.c_void_p(self.popped.ctypes.data),
            self.completion_slots,
        )
        """push_row() and pop() in one call; needs the lock and the turn."""
        self._arm: Callable[..., int] = functools.partial(library.quick.dmp_client_arm, client_at)

    def push(self, rows: npt.NDArray[np.void]) -> int:
        """Pushes as many of @rows as fit; `pushed` says how many. 0 or a negative errno."""
        return self._push(ctypes.c_void_p(rows.ctypes.data), len(rows), *self._push_rest)

    def arm(self, count: int) -> bool:
        """So many completions, or fewer, signal the eventfd; False if there are some already."""
        with self.push_lock:
            return self.refusal is not None or self._arm(count) == 0

    def check(self) -> None:
        """ClosedError, with the reason, if they may not be touched."""
        if self.refusal is not None:
            raise ClosedError(self.refusal)

    def unmap(self) -> int:
        """Gives the mapping back; nobody is inside any more."""
        return self.plane._unmap(self._address, self._map_bytes)
