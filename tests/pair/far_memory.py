# SPDX-License-Identifier: MIT
"""Memory that a plane of another machine mapped, for a case that takes it for its own.

Nothing is kept here but the rings' entries: whoever looks at a byte is told what is there
then, and what is written is there before the case goes on. So what a case proves of bytes
("nothing touches them any more") it proves of those in the other machine.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from outpost import Ask

from dmaplane import _abi

if TYPE_CHECKING:
    import numpy.typing as npt
    from far_plane import FarPlane

AT_ONCE: Final = 1
"""A deadline that has passed on every clock; 0 is none."""


class FarBytes:
    """A range of bytes, or each so many steps a byte: what a case does with an array of them."""

    __array_ufunc__ = None  # an array on the left leaves it to __eq__ here
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, plane: FarPlane, address: int, count: int, step: int = 1) -> None:
        self._plane, self._address, self._count, self._step = plane, address, count, step

    @property
    def _place(self) -> tuple[int, int, int]:
        return self._address, self._count, self._step

    def copy(self) -> npt.NDArray[np.uint8]:
        """What is there now."""
        if not self._count:
            return np.empty(0, np.uint8)
        return np.frombuffer(self._plane.ask(Ask.READ, *self._place)[1], np.uint8)

    def __len__(self) -> int:
        return self._count

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return self.copy() if dtype is None else self.copy().astype(dtype)

    def __bytes__(self) -> bytes:
        return self.copy().tobytes()

    def __getitem__(self, key: int | slice) -> Any:
        """A byte, as it is; or a range, which is looked at when somebody does."""
        if isinstance(key, slice):
            return self._range(key)
        return self._range(slice(key, key + 1)).copy()[0]

    def __setitem__(self, key: slice, value: Any) -> None:
        target = self._range(key)
        if not target._count:
            return
        content = np.asarray(value, np.uint8)
        if content.ndim:
            content = np.broadcast_to(content, target._count)
        self._plane.ask(Ask.WRITE, *target._place, content=content.tobytes())

    def _range(self, key: slice) -> FarBytes:
        places = range(*key.indices(self._count))
        assert places.step > 0, "backwards is not for here"
        first = self._address + places.start * self._step
        return FarBytes(self._plane, first, len(places), self._step * places.step)

    def __eq__(self, other: object) -> Any:
        return self.copy() == np.asarray(other)

    def __ne__(self, other: object) -> Any:
        return self.copy() != np.asarray(other)

    def any(self) -> bool:
        return bool(self.copy().any())

    def reshape(self, *shape: int) -> npt.NDArray[np.uint8]:
        """What is there now, in rows."""
        return self.copy().reshape(*shape)


class FarRings:
    """The control words of a channel's rings, and copies of their entries.

    Whoever asks how far the plane has come gets the entries that were there by then; whoever
    says how far he has come himself has handed over his own. Deadlines are in the other
    machine's time there, and in this one's here.
    """

    def __init__(
        self, plane: FarPlane, address: int, made: _abi.ChannelCreate, completion_slots: int
    ) -> None:
        self._plane, self._address = plane, address
        self._control = _abi.RingControl()
        self.submissions = np.zeros(made.slots, _abi.SUBMISSION)
        self.completions = np.zeros(completion_slots, _abi.COMPLETION)
        self._submissions_at = address + made.submissions_offset
        self._completions_at = address + made.completions_offset

    def _refresh(self) -> None:
        size = ctypes.sizeof(_abi.RingControl)
        entries = self.completions.view(np.uint8)
        (_, control), (_, found) = self._plane.ask_all(
            (Ask.READ, (self._address, size, 1), b""),
            (Ask.READ, (self._completions_at, len(entries), 1), b""),
        )
        ctypes.memmove(ctypes.addressof(self._control), bytes(control), size)
        entries[:] = np.frombuffer(found, np.uint8)

    def _put(self, field: str, value: int) -> tuple[Ask, tuple[int, int, int], bytes]:
        setattr(self._control, field, value)
        place = self._address + getattr(_abi.RingControl, field).offset
        return Ask.WRITE, (place, 4, 1), value.to_bytes(4, "little")

    @property
    def submit_tail(self) -> int:
        return self._control.submit_tail

    @submit_tail.setter
    def submit_tail(self, value: int) -> None:
        entries = self.submissions.copy()
        entries["deadline_ns"] += np.where(
            entries["deadline_ns"] > AT_ONCE, np.uint64(self._plane.ahead_ns % (1 << 64)), 0
        ).astype(np.uint64)
        content = entries.tobytes()
        self._plane.ask_all(
            (Ask.WRITE, (self._submissions_at, len(content), 1), content),
            self._put("submit_tail", value),
        )

    @property
    def complete_head(self) -> int:
        return self._control.complete_head

    @complete_head.setter
    def complete_head(self, value: int) -> None:
        if value != self._control.complete_head:
            self._plane.ask_all(self._put("complete_head", value))

    @property
    def complete_tail(self) -> int:
        self._refresh()
        return self._control.complete_tail


class FarSight:
    """How a case sees what a FarPlane mapped; see _rig.Sight."""

    def __init__(self, plane: FarPlane) -> None:
        self._plane = plane

    def bytes_at(self, address: int, length_bytes: int) -> FarBytes:
        return FarBytes(self._plane, address, length_bytes)

    def rings_at(
        self, address: int, made: _abi.ChannelCreate, completion_slots: int
    ) -> tuple[FarRings, Any, Any]:
        rings = FarRings(self._plane, address, made, completion_slots)
        return rings, rings.submissions, rings.completions
