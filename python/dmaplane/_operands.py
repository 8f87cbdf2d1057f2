# SPDX-License-Identifier: MIT
"""Operands of one operation: the ranges and numbers a caller gave, checked.

What is wrong by itself is refused here, with the argument named and a fix, before a
submission is made of it. Operands are the bytes of those fields, behind
the flags they ask for; they name buffers and hold nothing.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from dmaplane import _abi, _buffer
from dmaplane._errors import InvalidError
from dmaplane._plane import Capability

if TYPE_CHECKING:
    from dmaplane._buffer import Buffer, BufferRange
    from dmaplane._plane import Plane


_PACKED: Final = struct.Struct("<IIQQQII")
"""The fields of struct dmp_submission from source_id to checksum."""
NONE: Final = bytes(_PACKED.size)


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
    target, source = _range(plane, dst, "dst"), _range(plane, src, "src")
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
    target = _range(plane, dst, "dst")
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


def _flags(plane: Plane, link: bool, checksum: bool, verify: int | None) -> int:
    if not checksum and verify is None:
        return link * _abi.SUBMIT_LINK
    plane.require(Capability.CHECKSUM)
    if verify is None:
        return link * _abi.SUBMIT_LINK | _abi.SUBMIT_CHECKSUM
    if not 0 <= verify < 1 << 32:
        raise InvalidError("verify", f"{verify} is no CRC32C", fix="0 .. 2**32 - 1")
    return link * _abi.SUBMIT_LINK | _abi.SUBMIT_CHECKSUM | _abi.SUBMIT_VERIFY


def _range(plane: Plane, given: Buffer | BufferRange, field: str) -> BufferRange:
    if isinstance(given, _buffer.Buffer):
        part = _buffer.BufferRange(given, 0, given.length_bytes)
    elif isinstance(given, _buffer.BufferRange):
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
