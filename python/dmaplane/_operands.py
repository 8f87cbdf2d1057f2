# SPDX-License-Identifier: MIT
"""Operands of one operation: the ranges and numbers a caller gave, checked.

What is wrong by itself is refused here, with the argument named and a fix, before a
submission is made of it. Operands are the bytes of those fields, behind
the flags they ask for; they name buffers and hold nothing.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from dmaplane import _abi, _buffer, _region
from dmaplane._errors import InvalidError, NotAllowedError
from dmaplane._plane import Capability

if TYPE_CHECKING:
    from dmaplane._buffer import Buffer, BufferRange
    from dmaplane._endpoint import Endpoint
    from dmaplane._plane import Plane
    from dmaplane._region import RemoteRange, RemoteRegion


_PACKED: Final = struct.Struct("<IIQQQII")
"""The fields of struct dmp_submission from source_id to checksum."""
NONE: Final = bytes(_PACKED.size)
RANGES_BYTES: Final = 32
"""Of these, what names source and target; the immediate and the checksum follow."""


def of_copy(
    plane: Plane,
    dst: Buffer | BufferRange,
    src: Buffer | BufferRange,
    *,
    link: bool,
    checksum: bool,
    verify: int | None,
) -> tuple[int, bytes]:
    """Two ranges of one length that do not overlap, @dst writable."""
    target, source = _buffer.range_of(plane, dst, "dst"), _buffer.range_of(plane, src, "src")
    if target.length_bytes != source.length_bytes:
        raise InvalidError(
            "dst, src",
            f"{target.length_bytes} and {source.length_bytes} bytes",
            fix="one length: slice the longer one, as in dst[:len(src)]",
        )
    if target.buffer.read_only:
        raise InvalidError("dst", "this buffer is read-only", fix="a writable one")
    if target.buffer is source.buffer and (
        abs(target.offset - source.offset) < source.length_bytes
    ):
        raise InvalidError("dst, src", "they overlap", fix="ranges that do not")
    return _flags(plane, link, checksum, verify), _PACKED.pack(
        source.buffer.id,
        target.buffer.id,
        source.offset,
        target.offset,
        source.length_bytes,
        0,
        verify or 0,
    )


def of_fill(
    plane: Plane,
    dst: Buffer | BufferRange,
    pattern: int,
    *,
    link: bool,
    checksum: bool,
    verify: int | None,
) -> tuple[int, bytes]:
    """A writable range of whole 32-bit words, and a pattern that is one."""
    target = _buffer.range_of(plane, dst, "dst")
    if not 0 <= pattern < 1 << 32:
        raise InvalidError("pattern", f"{pattern}", fix="0 .. 2**32 - 1")
    if target.offset % 4 or target.length_bytes % 4:
        raise InvalidError(
            "dst", f"[{target.offset}:+{target.length_bytes}]", fix="multiples of 4 bytes"
        )
    if target.buffer.read_only:
        raise InvalidError("dst", "this buffer is read-only", fix="a writable one")
    return _flags(plane, link, checksum, verify), _PACKED.pack(
        0, target.buffer.id, 0, target.offset, target.length_bytes, pattern, verify or 0
    )


def of_send(
    plane: Plane,
    src: Buffer | BufferRange,
    *,
    link: bool,
    checksum: bool,
    verify: int | None,
) -> tuple[int, bytes]:
    """A range to send as one message."""
    source = _buffer.range_of(plane, src, "src")
    return _flags(plane, link, checksum, verify), _PACKED.pack(
        source.buffer.id, 0, source.offset, 0, source.length_bytes, 0, verify or 0
    )


def of_recv(
    plane: Plane,
    dst: Buffer | BufferRange,
    *,
    link: bool,
    checksum: bool,
    verify: int | None,
) -> tuple[int, bytes]:
    """A writable range with room for one message."""
    target = _buffer.range_of(plane, dst, "dst")
    if target.buffer.read_only:
        raise InvalidError("dst", "this buffer is read-only", fix="a writable one")
    return _flags(plane, link, checksum, verify), _PACKED.pack(
        0, target.buffer.id, 0, target.offset, target.length_bytes, 0, verify or 0
    )


def of_write(
    endpoint: Endpoint,
    src: Buffer | BufferRange,
    remote: RemoteRegion | RemoteRange,
    imm: int,
    *,
    link: bool,
    checksum: bool,
    verify: int | None,
) -> tuple[int, bytes]:
    """A range, one of the same length in a peer's region that may be written, a 32-bit number."""
    plane = endpoint.plane
    source, target = _buffer.range_of(plane, src, "src"), range_there(endpoint, remote, "write")
    if source.length_bytes != target.length_bytes:
        raise _unequal("src, remote", source.length_bytes, target.length_bytes)
    if not 0 <= imm < 1 << 32:
        raise InvalidError("imm", f"{imm}", fix="0 .. 2**32 - 1")
    return _flags(plane, link, checksum, verify), _PACKED.pack(
        source.buffer.id,
        target.region.id,
        source.offset,
        target.offset,
        source.length_bytes,
        imm,
        verify or 0,
    )


def of_read(
    endpoint: Endpoint,
    dst: Buffer | BufferRange,
    remote: RemoteRegion | RemoteRange,
    *,
    link: bool,
    checksum: bool,
    verify: int | None,
) -> tuple[int, bytes]:
    """A writable range, and one of the same length in a peer's region that may be read."""
    plane = endpoint.plane
    target, source = _buffer.range_of(plane, dst, "dst"), range_there(endpoint, remote, "read")
    if source.length_bytes != target.length_bytes:
        raise _unequal("dst, remote", target.length_bytes, source.length_bytes)
    if target.buffer.read_only:
        raise InvalidError("dst", "this buffer is read-only", fix="a writable one")
    return _flags(plane, link, checksum, verify), _PACKED.pack(
        source.region.id,
        target.buffer.id,
        source.offset,
        target.offset,
        target.length_bytes,
        0,
        verify or 0,
    )


def _unequal(fields: str, first: int, second: int) -> InvalidError:
    return InvalidError(
        fields, f"{first} and {second} bytes", fix="one length: slice the longer one"
    )


def range_there(
    endpoint: Endpoint, given: RemoteRegion | RemoteRange | None, right: _region.Access
) -> RemoteRange:
    """What a caller gave as a range of a region of this peer that grants @right."""
    if isinstance(given, _region.RemoteRange):
        part = given
    elif isinstance(given, _region.RemoteRegion):
        part = given.all
    else:
        raise InvalidError(
            "remote", f"{type(given).__name__} is no peer's region", fix="endpoint.region(key)"
        )
    region = part.region
    if region.endpoint is not endpoint:
        raise InvalidError("remote", "it belongs to another endpoint", fix="import the key there")
    if region._refusal is not None:
        region._check()
    if region.access not in (right, "rw"):
        raise NotAllowedError(
            f"remote: the peer granted {region.access!r} only; "
            f'it has to register the region with access="{right}" or "rw"'
        )
    return part


def _flags(plane: Plane, link: bool, checksum: bool, verify: int | None) -> int:
    if not checksum and verify is None:
        return link * _abi.SUBMIT_LINK
    plane.require(Capability.CHECKSUM)
    if verify is None:
        return link * _abi.SUBMIT_LINK | _abi.SUBMIT_CHECKSUM
    if not 0 <= verify < 1 << 32:
        raise InvalidError("verify", f"{verify} is no CRC32C", fix="0 .. 2**32 - 1")
    return link * _abi.SUBMIT_LINK | _abi.SUBMIT_CHECKSUM | _abi.SUBMIT_VERIFY
