# SPDX-License-Identifier: MIT
"""Buffers: pinned memory with an id, a length, a proven place, and known holders.

A handle may go before the memory can: close() retires the storage behind it, which is
freed when the last view, operation or export is gone (see _storage.py).
"""

from __future__ import annotations

import errno
import sys
import time
import warnings
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from dmaplane import _abi
from dmaplane._errors import (
    BusyError,
    ClosedError,
    InvalidError,
    TimedOutError,
    UnsupportedError,
    error_from,
)
from dmaplane._export import Export
from dmaplane._placement import (
    KINDS,
    POLICIES,
    Kind,
    Placement,
    Policy,
    chosen_kind,
    chosen_place,
    placement_of,
)
from dmaplane._plane import Capability, Visit, deadline_of, slice_of
from dmaplane._scope import Scope
from dmaplane._storage import Holders, Storage, free_retired
from dmaplane._topology import pci_number

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from dmaplane._plane import Plane
    from dmaplane._region import Access, Region

_NEEDED: Final[dict[str, Capability]] = {
    "huge": Capability.HUGE,
    "coherent": Capability.COHERENT,
    "user": Capability.USER,
    "peer": Capability.PEER,
}


class BufferRange:
    """A part of a buffer: `buffer[a:b]`. Names bytes, holds nothing."""

    __slots__ = ("buffer", "length_bytes", "offset")

    def __init__(self, buffer: Buffer, offset: int, length_bytes: int) -> None:
        self.buffer = buffer
        self.offset = offset
        self.length_bytes = length_bytes

    def __len__(self) -> int:
        return self.length_bytes

    def __getitem__(self, part: slice) -> BufferRange:
        start, length = part_of(part, self.length_bytes)
        return BufferRange(self.buffer, self.offset + start, length)

    def region(self, access: Access = "rw") -> Region:
        """Registers these bytes for peers; the region holds the buffer. See Plane.region()."""
        return self.buffer.plane.region(self, access)

    def memory(self) -> memoryview:
        """A memoryview of these bytes; a holder while it lives."""
        return self._view("memoryview")

    def _view(self, name: str) -> memoryview:
        return self.buffer._view(self, name)

    def numpy(
        self, shape: int | Sequence[int] | None = None, dtype: npt.DTypeLike = np.uint8
    ) -> npt.NDArray[Any]:
        """A numpy array of these bytes, without a copy; a holder while it lives."""
        kind = np.dtype(dtype)
        if kind.hasobject or kind.itemsize == 0:
            raise InvalidError("dtype", f"{kind} has no fixed layout", fix="a plain number type")
        shape, count = _shape_of(shape, kind.itemsize, self.length_bytes)
        flat = self._view(f"numpy {kind} {list(shape)}")
        return np.frombuffer(flat, dtype=kind, count=count).reshape(shape)

    def tensor(self, shape: int | Sequence[int] | None = None, dtype: Any = None) -> Any:
        """A torch tensor of these bytes, without a copy; a holder while it lives.

        @dtype: a torch dtype or its name ("bfloat16"); uint8 if left out. Imports torch.
        """
        torch = _torch()
        if isinstance(dtype, str):
            named = getattr(torch, dtype, None)
            if not isinstance(named, torch.dtype):
                raise InvalidError("dtype", f"torch has no {dtype!r}", fix='e.g. "bfloat16"')
            dtype = named
        dtype = torch.uint8 if dtype is None else dtype
        if self.buffer.read_only:
            raise UnsupportedError("a tensor of a read-only buffer", "a writable one, or numpy()")
        shape, count = _shape_of(shape, dtype.itemsize, self.length_bytes)
        flat = self._view(f"tensor {dtype} {list(shape)}")
        return torch.frombuffer(flat, dtype=dtype, count=count).reshape(shape)

    def __repr__(self) -> str:
        return f"{self.buffer!r}[{self.offset}:{self.offset + self.length_bytes}]"


class Buffer(Scope):
    """Pinned memory of a plane. Use it in a `with` block; made by `plane.buffer()`."""

    __slots__ = (
        "__weakref__",
        "_refusal",
        "_storage",
        "kind",
        "length_bytes",
        "page_bytes",
        "plane",
        "policy",
    )

    def __init__(
        self, plane: Plane, storage: Storage, *, kind: Kind, policy: Policy, page_bytes: int
    ) -> None:
        self.plane = plane
        self.kind: Kind = kind
        self.policy: Policy = policy
        self.length_bytes = storage.length_bytes
        self.page_bytes = page_bytes
        self._storage = storage
        self._refusal: str | None = None

    @property
    def id(self) -> int:
        """Names the buffer in submissions. Never reused on its plane."""
        return self._storage.identity

    @property
    def read_only(self) -> bool:
        """True if views cannot write."""
        return self._storage.read_only

    @property
    def revoked(self) -> bool:
        """True if its memory was taken away from outside; one command.

        Operations on it fail from then on, and touching a view of it is a bus error.
        """
        return bool(self._query().state == _abi.STATE_REVOKED)

    @property
    def allocated_bytes(self) -> int:
        """`length_bytes` in whole pages, as the plane allocated it."""
        return self._storage.map_bytes

    @property
    def closed(self) -> bool:
        """True after close() or destroy(), or once the plane is closed."""
        return self._refusal is not None or self.plane.closed

    def _check(self) -> None:
        self.plane._check()
        if self._refusal is not None:
            raise ClosedError(self._refusal)

    def _view(self, part: BufferRange, name: str) -> memoryview:
        self._check()
        return self._storage.view(part.offset, part.length_bytes, name)

    def __len__(self) -> int:
        return self.length_bytes

    def __getitem__(self, part: slice) -> BufferRange:
        start, length = part_of(part, self.length_bytes)
        return BufferRange(self, start, length)

    @property
    def all(self) -> BufferRange:
        """The whole of it as a range."""
        return BufferRange(self, 0, self.length_bytes)

    def memory(self) -> memoryview:
        """A memoryview of the whole buffer; a holder while it lives."""
        return self.all.memory()

    def numpy(
        self, shape: int | Sequence[int] | None = None, dtype: npt.DTypeLike = np.uint8
    ) -> npt.NDArray[Any]:
        """A numpy array on this memory, without a copy; a holder while it lives.

        @shape: by default all that fits; a smaller one shows the first bytes.
        """
        return self.all.numpy(shape, dtype)

    def tensor(self, shape: int | Sequence[int] | None = None, dtype: Any = None) -> Any:
        """A torch tensor on this memory, without a copy; a holder while it lives."""
        return self.all.tensor(shape, dtype)

    def __buffer__(self, flags: int, /) -> memoryview:
        return self.memory()

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)  # kDLCPU

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        array = self.numpy()
        if max_version is None and dl_device is None and copy is None:
            return array.__dlpack__(stream=stream)
        options: dict[str, Any] = {"stream": stream, "max_version": max_version}
        return array.__dlpack__(**options, dl_device=dl_device, copy=copy)

    def _query(self, flags: int = 0) -> _abi.BufferQuery:
        self._check()
        answer = _abi.BufferQuery(flags=flags, buffer_id=self.id)
        self.plane.call("BUFFER_QUERY", _abi.BUFFER_QUERY, answer)
        return answer

    @property
    def placement(self) -> Placement:
        """Where the pages were found at creation; one command."""
        return placement_of(self._query())

    def recheck(self) -> Placement:
        """Where the pages are now, counted again; costs a look at every page."""
        return placement_of(self._query(_abi.BUFFER_RECHECK))

    @property
    def holders(self) -> Holders:
        """Who can still reach it; one command."""
        answer = self._query()
        storage = self._storage
        ours = 1 if storage.address and storage.keep is None else 0
        names = storage.view_names()
        return Holders(
            views=len(names),
            mappings=max(0, answer.mappings - ours),
            regions=answer.regions,
            exports=answer.exports,
            operations=answer.operations,
            view_names=names,
        )

    def region(self, access: Access = "rw") -> Region:
        """Registers the whole of it for peers; the region holds it. See Plane.region()."""
        return self.plane.region(self, access)

    def sync(
        self,
        part: slice | None = None,
        *,
        read: bool = False,
        write: bool = False,
        end: bool = False,
    ) -> None:
        """Orders CPU access to a range against devices: before it, and with @end after it."""
        if not (read or write):
            raise InvalidError("read, write", "neither is set", fix="say what the access does")
        span = self.all if part is None else self[part]
        flags = (
            (_abi.SYNC_FOR_READ if read else 0)
            | (_abi.SYNC_FOR_WRITE if write else 0)
            | (_abi.SYNC_END if end else 0)
        )
        self._check()
        self.plane.call(
            "BUFFER_SYNC",
            _abi.BUFFER_SYNC,
            _abi.BufferSync(
                flags=flags,
                buffer_id=self.id,
                offset=span.offset,
                length_bytes=span.length_bytes,
            ),
        )

    def export(self, *, read_only: bool = False, dmabuf: bool = False) -> Export:
        """An fd that shares the whole buffer with other processes; yours to close."""
        self._check()
        self.plane.require(Capability.EXPORT_DMABUF if dmabuf else Capability.EXPORT)
        flags = (_abi.EXPORT_READ_ONLY if read_only else 0) | (_abi.EXPORT_DMABUF if dmabuf else 0)
        request = _abi.BufferExport(flags=flags, buffer_id=self.id)
        self.plane.call("BUFFER_EXPORT", _abi.BUFFER_EXPORT, request)
        return Export(request.fd, length_bytes=self.length_bytes, read_only=read_only)

    def destroy(self, *, drain: bool = False, timeout: float | None = None) -> None:
        """Frees it now, or says why not: BusyError names the holders, and nothing changed.

        With @drain: refuses new use at once, waits up to @timeout seconds for every
        holder to go, then frees; TimedOutError leaves it draining, and freed by the last.
        """
        self._check()
        if timeout is not None and not drain:
            raise InvalidError("timeout", "only waiting has a limit", fix="destroy(drain=True)")
        storage = self._storage
        deadline = deadline_of(timeout)
        if drain:
            self._drain(deadline)
            return
        with Visit(self.plane):
            self.plane._check()
            if storage.views:
                raise BusyError(f"buffer {self.id}", self.holders, errno=errno.EBUSY)
            with storage.lock:
                busy = bool(storage.views)
                if not busy:
                    storage.unmap()
                    answer = storage.destroy(0, 0)
            if busy or answer == -errno.EBUSY:
                raise BusyError(f"buffer {self.id}", self.holders, errno=errno.EBUSY)
        if answer:
            raise error_from(answer, "BUFFER_DESTROY", f"buffer {self.id}")
        storage.forget()
        self._refusal = f"buffer {self.id} is destroyed"

    def _drain(self, deadline_ns: int) -> None:
        storage = self._storage
        self._refusal = f"buffer {self.id} is draining or destroyed"
        answer, last = -errno.ETIMEDOUT, False
        while answer == -errno.ETIMEDOUT and not last:
            if storage.views:
                time.sleep(0.0005)
                until, last = 1, bool(deadline_ns) and time.monotonic_ns() >= deadline_ns
            else:
                until, last = slice_of(deadline_ns)
            with Visit(self.plane):
                self.plane._check()
                with storage.lock:
                    if not storage.views:
                        storage.unmap()
                answer = storage.destroy(_abi.DESTROY_DRAIN, until)
        if answer == -errno.ETIMEDOUT:
            storage.retired = True
            raise TimedOutError(
                f"buffer {self.id} is still held by {Holders(len(storage.views), 0, 0, 0, 0)}"
                if storage.views
                else f"buffer {self.id} is still held by operations or exports; it stays draining",
                errno=errno.ETIMEDOUT,
            )
        if answer:
            raise error_from(answer, "BUFFER_DESTROY", f"buffer {self.id}")
        storage.forget()

    def close(self) -> None:
        """Ends this handle; idempotent. Memory still shown or in flight is freed by the last."""
        if self._refusal is None:
            self._refusal = f"buffer {self.id} is closed"
            if not self.plane.closed:
                self._storage.retire()

    def __del__(self) -> None:
        if getattr(self, "_refusal", "") is None and not self.plane.closed:
            warnings.warn(
                f"{self!r} was never closed; its memory stays until the plane closes",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.length_bytes} bytes"
        return f"<buffer {self.id} {self.kind}, {state}>"


def part_of(part: slice, length_bytes: int) -> tuple[int, int]:
    """Start and length of a slice of so many bytes; InvalidError unless it is a range of them."""
    if not isinstance(part, slice):
        raise InvalidError("index", f"{part!r} is no range", fix="slice it: buffer[0:4096]")
    start, stop, step = part.indices(length_bytes)
    if step != 1:
        raise InvalidError("step", f"{step} is not 1", fix="a range is contiguous")
    if stop <= start:
        raise InvalidError("range", f"[{start}:{stop}] is empty", fix="at least one byte")
    for name, bound in (("start", part.start), ("stop", part.stop)):
        if bound is not None and bound > length_bytes:
            raise InvalidError(name, f"{bound} is past the end", fix=f"at most {length_bytes}")
    return start, stop - start


def range_of(plane: Plane, given: Buffer | BufferRange, field: str) -> BufferRange:
    """What a caller gave for @field as a range of a buffer of @plane that is open."""
    if isinstance(given, Buffer):
        part = BufferRange(given, 0, given.length_bytes)
    elif isinstance(given, BufferRange):
        part = given
    else:
        raise InvalidError(
            field,
            f"{type(given).__name__} is no buffer",
            fix="plane.buffer(), or plane.buffer(user=...) for memory you already have",
        )
    if part.buffer.plane is not plane:
        raise InvalidError(field, "it belongs to another plane", fix="export and import it")
    part.buffer._check()
    return part


def _shape_of(
    shape: int | Sequence[int] | None, item_bytes: int, length_bytes: int
) -> tuple[tuple[int, ...], int]:
    room = length_bytes // item_bytes
    sides = (room,) if shape is None else (shape,) if isinstance(shape, int) else tuple(shape)
    count = 1
    for side in sides:
        if side < 0:
            raise InvalidError("shape", f"{list(sides)} has a negative side", fix="sizes >= 0")
        count *= side
    if count > room:
        raise InvalidError(
            "shape",
            f"{list(sides)} of {item_bytes}-byte items needs {count * item_bytes} bytes",
            fix=f"there are {length_bytes}",
        )
    if count == 0:
        raise InvalidError("shape", f"{list(sides)} holds nothing", fix="at least one item")
    return sides, count


def _torch() -> Any:
    loaded = sys.modules.get("torch")
    if loaded is not None:
        return loaded
    try:
        import torch  # type: ignore[import-not-found,unused-ignore]
    except ImportError as reason:
        raise UnsupportedError("tensor()", "torch: pip install dmaplane[torch]") from reason
    return torch


def _user_memory(user: Any, read_only: bool) -> memoryview:
    try:
        memory = memoryview(user)
    except TypeError as reason:
        raise InvalidError(
            "user", f"{type(user).__name__} has no buffer protocol", fix="e.g. a numpy array"
        ) from reason
    if not memory.c_contiguous:
        raise InvalidError("user", "the memory is not contiguous", fix="np.ascontiguousarray()")
    if memory.readonly and not read_only:
        raise InvalidError("user", "the memory is read-only", fix="read_only=True")
    if memory.nbytes == 0:
        raise InvalidError("user", "the memory is empty", fix="at least one byte")
    return memory.cast("B") if memory.ndim != 1 or memory.format != "B" else memory


def create(
    plane: Plane,
    length_bytes: int | None,
    *,
    kind: Kind | None,
    node: int | None,
    nodes: Iterable[int] | None,
    policy: Policy | None,
    strict: bool,
    huge: Literal["prefer", "require"] | None,
    user: Any,
    read_only: bool,
    write_combine: bool,
    peer: str | None,
    peer_bar: int | None,
    peer_address: int,
) -> Buffer:
    """Plane.buffer(): checks every argument here, so that the plane is never asked nonsense."""
    free_retired(plane)
    if peer is not None and (kind not in (None, "peer") or user is not None or huge is not None):
        raise InvalidError("peer", "the memory of a device has its kind", fix="give peer= alone")
    chosen = chosen_kind("peer" if peer is not None else kind, huge, user)
    if chosen == "peer" and peer is None:
        raise InvalidError("peer", "the device is missing", fix='its PCI address, "0000:3b:00.0"')
    place, preferred, mask = chosen_place(node, nodes, policy, strict)
    keep: memoryview | None = None
    if user is not None:
        if place != "any" or strict:
            raise InvalidError("user", "this memory already has its place", fix="no node, policy")
        keep = _user_memory(user, read_only)
        if length_bytes is not None and not 0 < length_bytes <= keep.nbytes:
            raise InvalidError("length_bytes", f"{length_bytes}", fix=f"1 .. {keep.nbytes}")
        keep = keep[:length_bytes]
        length_bytes = keep.nbytes
    elif read_only:
        raise InvalidError("read_only", "nothing could ever be written", fix="only with user=")
    if length_bytes is None:
        raise InvalidError("length_bytes", "it is missing", fix="bytes wanted, > 0")
    if not 0 < length_bytes <= plane.limits.buffer_bytes_max:
        raise InvalidError(
            "length_bytes", f"{length_bytes}", fix=f"1 .. {plane.limits.buffer_bytes_max}"
        )
    if chosen != "peer" and (peer_bar is not None or peer_address):
        raise InvalidError("peer_bar, peer_address", "of no device", fix="give peer= too")
    if write_combine:
        plane.require(Capability.WRITE_COMBINE)
    if chosen in _NEEDED and not (chosen == "huge" and huge == "prefer"):
        plane.require(_NEEDED[chosen])
    if chosen == "huge" and huge == "prefer" and Capability.HUGE not in plane.capabilities:
        chosen, huge = "pages", None
    request = _abi.BufferCreate(
        flags=(_abi.BUFFER_STRICT if strict else 0)
        | (_abi.BUFFER_HUGE_PREFER if huge == "prefer" else 0)
        | (_abi.BUFFER_WRITE_COMBINE if write_combine else 0)
        | (_abi.BUFFER_READ_ONLY if read_only else 0),
        length_bytes=length_bytes,
        kind=KINDS.index(chosen),
        policy=POLICIES.index(place),
        node=preferred,
        node_mask=mask,
        user_addr=np.frombuffer(keep, dtype=np.uint8).ctypes.data if keep is not None else 0,
        peer_device=pci_number(peer) if peer is not None else 0,
        peer_bar=0 if peer is None else _abi.PEER_DEVICE_MEMORY if peer_bar is None else peer_bar,
        peer_address=peer_address,
    )
    plane.call("BUFFER_CREATE", _abi.BUFFER_CREATE, request)
    storage = Storage(
        plane,
        request.buffer_id,
        length_bytes=length_bytes,
        map_offset=request.map_offset,
        map_bytes=request.map_bytes,
        read_only=read_only,
        keep=keep,
    )
    return Buffer(plane, storage, kind=chosen, policy=place, page_bytes=request.page_bytes)


def import_from(plane: Plane, source: Any, *, read_only: bool) -> Buffer:
    """Plane.import_buffer()."""
    free_retired(plane)
    if not plane.capabilities & (Capability.IMPORT | Capability.IMPORT_DMABUF):
        plane.require(Capability.IMPORT)
    fd = source if isinstance(source, int) else source.fileno()
    if fd < 0:
        raise InvalidError("source", f"{fd} is no fd", fix="an fd, or an object with fileno()")
    request = _abi.BufferImport(flags=_abi.IMPORT_READ_ONLY if read_only else 0, fd=fd)
    plane.call("BUFFER_IMPORT", _abi.BUFFER_IMPORT, request)
    storage = Storage(
        plane,
        request.buffer_id,
        length_bytes=request.length_bytes,
        map_offset=request.map_offset,
        map_bytes=request.length_bytes,
        read_only=read_only,
    )
    return Buffer(plane, storage, kind="imported", policy="any", page_bytes=request.page_bytes)
