# SPDX-License-Identifier: MIT
"""Storage: a buffer inside the plane, its one mapping, and every view of it that lives.

Owned by the plane, because a Buffer handle may go before the memory can. Each view
(numpy array, tensor, memoryview, DLPack capsule) hangs on one object that is known
here by a weak reference.

Invariant: the mapping is taken away only when no view is alive, so no view ever
dangles (L3). Callbacks run inside the garbage collector, in any thread: they take no
locks and use only single dict operations.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dmaplane import _abi
from dmaplane._errors import ClosedError, error_from
from dmaplane._plane import Visit

if TYPE_CHECKING:
    from collections.abc import Callable

    from dmaplane._plane import Plane

PROT_READ: Final = 1
PROT_WRITE: Final = 2


@dataclasses.dataclass(frozen=True, slots=True)
class Holders:
    """Who can still reach a buffer, and how many of each."""

    views: int
    """numpy arrays, tensors, memoryviews and DLPack capsules of this process."""
    mappings: int
    """Mappings of the plane other than the one behind the views."""
    regions: int
    exports: int
    operations: int
    """In flight."""
    view_names: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """0 if nothing holds it."""
        return self.views + self.mappings + self.regions + self.exports + self.operations

    def __bool__(self) -> bool:
        return self.total > 0

    def __str__(self) -> str:
        parts = [
            f"{count} {name if count != 1 else name[:-1]}"
            for name, count in (
                ("views", self.views),
                ("mappings", self.mappings),
                ("regions", self.regions),
                ("exports", self.exports),
                ("operations", self.operations),
            )
            if count
        ]
        text = ", ".join(parts) or "nothing"
        return f"{text} ({'; '.join(self.view_names)})" if self.view_names else text


class Storage:
    """A buffer inside the plane, its mapping, and the views of it that are alive."""

    __slots__ = (
        "__weakref__",
        "_freeing",
        "address",
        "identity",
        "keep",
        "length_bytes",
        "lock",
        "map_bytes",
        "map_offset",
        "plane",
        "read_only",
        "retired",
        "views",
    )

    def __init__(
        self,
        plane: Plane,
        identity: int,
        *,
        length_bytes: int,
        map_offset: int,
        map_bytes: int,
        read_only: bool,
        keep: memoryview | None = None,
    ) -> None:
        self.plane = plane
        self.identity = identity
        self.length_bytes = length_bytes
        self.map_offset = map_offset
        self.map_bytes = map_bytes
        self.read_only = read_only
        self.keep = keep
        self.retired = False
        self.address = 0
        self.views: dict[int, tuple[Callable[[], Any], str]] = {}
        self.lock = threading.Lock()  # a view is not made while destroy() unmaps
        self._freeing = [True]  # popped by whoever frees: list.pop() happens once
        plane._storages[identity] = self
        if keep is not None:
            self.address = np.frombuffer(keep, dtype=np.uint8).ctypes.data

    def _address(self) -> int:
        if not self.address:
            protection = PROT_READ if self.read_only else PROT_READ | PROT_WRITE
            with Visit(self.plane):
                self.plane._check()
                answer = self.plane._map(self.map_bytes, protection, self.map_offset)
            if answer < 0:
                self.plane._check()  # closed meanwhile: that is the reason
                raise error_from(answer, "mmap", f"buffer {self.identity}")
            self.address = answer
        return self.address

    def view(self, offset: int, length_bytes: int, name: str) -> memoryview:
        """A view of a range. It, and all that is made from it, hang on one tracked object."""
        reserved = object()
        self.views[id(reserved)] = (lambda: reserved, name)
        try:
            # Reserved first, looked at second: who frees sets `retired` first and looks at
            # the views second, so one of us sees the other.
            with self.lock:
                self.plane._check()
                if self.retired:
                    raise ClosedError(f"buffer {self.identity} is closed")
                root = (ctypes.c_ubyte * length_bytes).from_address(self._address() + offset)
            if self.keep is not None:
                root._keep = self.keep  # type: ignore[attr-defined]  # the user's memory stays too
            key = id(root)
            gone = weakref.ref(root, lambda _, key=key: self._view_gone(key))  # type: ignore[misc]
            self.views[key] = (gone, name)
        finally:
            self._view_gone(id(reserved))
        shown = memoryview(root).cast("B")
        return shown.toreadonly() if self.read_only else shown

    def _view_gone(self, key: int) -> None:
        self.views.pop(key, None)
        if self.retired and not self.views:
            self.free()
            self.plane.end_if_unused()

    def view_names(self) -> tuple[str, ...]:
        """What the live views are, for messages."""
        return tuple(name for _, name in list(self.views.values()))

    def unmap(self) -> None:
        """Gives the mapping back; only without views. A later view maps again."""
        address, self.address = self.address, 0
        if address and self.keep is None:
            answer = self.plane._unmap(address, self.map_bytes)
            if answer:
                raise error_from(answer, "munmap", f"buffer {self.identity}")
        elif self.keep is not None:
            self.address = address

    def destroy(self, flags: int, deadline_ns: int) -> int:
        """BUFFER_DESTROY; 0 or a negative errno. Repeats after signals."""
        request = _abi.Destroy(
            size=ctypes.sizeof(_abi.Destroy), flags=flags, id=self.identity, deadline_ns=deadline_ns
        )
        answer = -errno.EINTR
        while answer == -errno.EINTR:
            answer = self.plane._command(_abi.BUFFER_DESTROY, request)
        return answer

    def forget(self) -> None:
        """The plane has freed it."""
        self.plane._storages.pop(self.identity, None)
        self.plane._retired.pop(self.identity, None)
        self.keep = None

    def free(self) -> bool:
        """Frees what nothing holds any more; what is held by the plane itself is drained.

        True once it is gone. Never waits. Only one caller at a time gets in.
        """
        plane = self.plane
        if self.views or plane._process != os.getpid():
            return False
        with Visit(plane):
            if plane._ended:
                return True
            try:
                self._freeing.pop()
            except IndexError:
                return False
            try:
                self.unmap()
                answer = self.destroy(0, 0)
                if answer == -errno.EBUSY:
                    answer = self.destroy(_abi.DESTROY_DRAIN, 1)
                if answer in (0, -errno.ENOENT):
                    self.forget()
                    return True
                return False
            finally:
                self._freeing.append(True)

    def retire(self) -> None:
        """No new use from here; freed now or when the last holder is gone."""
        self.retired = True
        self.plane._retired[self.identity] = self
        self.free()


def free_retired(plane: Plane) -> None:
    """Frees retired storage whose operations or exports have ended meanwhile."""
    for storage in list(plane._retired.values()):
        if not storage.views:
            storage.free()
