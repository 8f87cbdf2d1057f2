# SPDX-License-Identifier: MIT
"""Rows: arrays of SUBMISSION checked as a whole, and arrays of COMPLETION kept for a caller.

What is wrong in a row by itself (an unknown operation, a flag nobody knows, a field
that must be zero) is refused here, before anything is submitted, with the first
such row and field named. What depends on the plane's state (is the id alive, is the
range inside it) is the plane's to say, in the completion.

Who owns what. The channel counts the rows it pushes; whoever takes completions adds parts
and counts those; a caller takes parts away. The lock is about `parts` and `taken`.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

import numpy as np

from dmaplane import _abi, _operands
from dmaplane._buffer import range_of
from dmaplane._errors import InvalidError

if TYPE_CHECKING:
    import numpy.typing as npt

    from dmaplane._buffer import Buffer, BufferRange
    from dmaplane._endpoint import Endpoint
    from dmaplane._region import RemoteRange, RemoteRegion

_FLAGS: Final = _abi.SUBMIT_LINK | _abi.SUBMIT_CHECKSUM | _abi.SUBMIT_VERIFY | _abi.SUBMIT_NOWAIT
_EMPTY: Final = (_abi.OP_NOP, _abi.OP_FENCE)
_LOCAL: Final = (_abi.OP_NOP, _abi.OP_FILL, _abi.OP_COPY, _abi.OP_FENCE)
_NAMED: Final = {
    "send": _abi.OP_SEND,
    "recv": _abi.OP_RECV,
    "write": _abi.OP_WRITE,
    "write_imm": _abi.OP_WRITE_IMM,
    "read": _abi.OP_READ,
}
_TRANSFERS: Final = tuple(_NAMED.values())
_KNOWN: Final = (*_LOCAL, *_TRANSFERS)


def checked(rows: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """@rows, contiguous; InvalidError names the first bad row and its field."""
    if not isinstance(rows, np.ndarray) or rows.dtype != _abi.SUBMISSION or rows.ndim != 1:
        raise InvalidError(
            "rows", "not a one-dimensional array of SUBMISSION", fix="np.zeros(n, SUBMISSION)"
        )
    if not rows.flags.c_contiguous:
        rows = np.ascontiguousarray(rows)
    if len(rows):
        # One pass over the memory settles the common cases: everything is a NOP, every
        # row is a plain COPY, or every row is the same operation of an endpoint.
        bits = _bits(rows)
        header, user_data = bits[0], bits[1]
        if (
            user_data >> 63
            or header >> 32
            or header & 0xFFFF > _abi.OP_FENCE
            or header >> 16 & ~_abi.SUBMIT_LINK
            or (any(bits[3:]) and not _plain(rows, bits))
        ) and not _transfers(rows, bits):
            _examine(rows)
    return rows


def _bits(rows: npt.NDArray[np.void]) -> list[int]:
    """All rows or-ed together, as eight 64-bit words."""
    words, count = rows.view(np.uint64), len(rows)
    while count > 32:  # in halves: numpy is quick along memory, not across rows
        half = count // 2
        folded = words[: 8 * half] | words[8 * half : 16 * half]
        if count & 1:
            folded[:8] |= words[16 * half :]
        words, count = folded, half
    bits: list[int] = np.bitwise_or.reduce(words.reshape(-1, 8), axis=0).tolist()
    return bits


def _plain(rows: npt.NDArray[np.void], bits: list[int]) -> bool:
    """True if all rows are COPY without a checksum, with bytes to move."""
    return (
        bits[7] == 0
        and bool((rows["operation"] == _abi.OP_COPY).all())
        and bool(rows["length_bytes"].all())
    )


def _transfers(rows: npt.NDArray[np.void], bits: list[int]) -> bool:
    """True if all rows are one operation of an endpoint, and none has what that may not have."""
    operation = int(rows["operation"][0])
    return (
        operation in _TRANSFERS
        and not bits[1] >> 63
        and not bits[0] >> 16 & 0xFFFF & ~(_FLAGS & ~_abi.SUBMIT_VERIFY)
        and not bits[7] >> 32
        and (operation == _abi.OP_WRITE_IMM or not bits[7])
        and bool((rows["operation"] == operation).all())
    )


def _refuse(bad: npt.NDArray[np.bool_], rows: npt.NDArray[np.void], field: str, fix: str) -> None:
    if bad.any():
        first = int(bad.argmax())
        raise InvalidError(f"rows[{first}].{field}", f"{rows[field][first]}", fix=fix)


def _examine(rows: npt.NDArray[np.void]) -> None:
    operation, flags = rows["operation"], rows["flags"]
    empty = np.isin(operation, _EMPTY)
    local = np.isin(operation, _LOCAL)
    verify = (flags & _abi.SUBMIT_VERIFY) != 0
    fill = operation == _abi.OP_FILL
    _refuse(~np.isin(operation, _KNOWN), rows, "operation", "an OP_ number")
    _refuse((flags & ~np.uint16(_FLAGS)) != 0, rows, "flags", "SUBMIT_ bits only")
    _refuse(
        rows["user_data"] >= np.uint64(1 << 63),
        rows,
        "user_data",
        "below 2**63; the highest bit is for operations",
    )
    _refuse(local & (rows["endpoint_id"] != 0), rows, "endpoint_id", "0 for this operation")
    for field in ("source_id", "target_id", "source_offset", "target_offset", "length_bytes"):
        _refuse(empty & (rows[field] != 0), rows, field, "0 for NOP and FENCE")
    _refuse(
        empty & ((flags & (_abi.SUBMIT_CHECKSUM | _abi.SUBMIT_VERIFY)) != 0),
        rows,
        "flags",
        "no checksum where no byte moves",
    )
    _refuse(
        np.isin(operation, (_abi.OP_FILL, _abi.OP_COPY)) & (rows["length_bytes"] == 0),
        rows,
        "length_bytes",
        "at least one byte",
    )
    _refuse(fill & (rows["source_id"] != 0), rows, "source_id", "0 for FILL")
    _refuse(fill & (rows["source_offset"] != 0), rows, "source_offset", "0 for FILL")
    for field in ("target_offset", "length_bytes"):
        _refuse(fill & (rows[field] % 4 != 0), rows, field, "a multiple of 4 for FILL")
    _refuse(
        ~np.isin(operation, (_abi.OP_FILL, _abi.OP_WRITE_IMM)) & (rows["immediate"] != 0),
        rows,
        "immediate",
        "0 for this operation",
    )
    _refuse(~verify & (rows["checksum"] != 0), rows, "checksum", "0 without SUBMIT_VERIFY")


def of_transfers(
    endpoint: Endpoint,
    operation: str,
    local: Buffer | BufferRange,
    remote: RemoteRegion | RemoteRange | None,
    *,
    local_offsets: npt.ArrayLike,
    remote_offsets: npt.ArrayLike,
    lengths: npt.ArrayLike | None,
    immediates: npt.ArrayLike,
    user_data: npt.ArrayLike | None,
    checksum: bool,
    link: bool,
) -> npt.NDArray[np.void]:
    """Endpoint.rows(): whole arrays in, whole arrays checked."""
    if operation not in _NAMED:
        raise InvalidError("operation", f"{operation!r} is none", fix=f"one of {', '.join(_NAMED)}")
    number = _NAMED[operation]
    here = range_of(endpoint.plane, local, "local")
    there = None
    if number in (_abi.OP_SEND, _abi.OP_RECV):
        if remote is not None:
            raise InvalidError("remote", "a message names no region", fix="leave it out")
    else:
        there = _operands.range_there(endpoint, remote, "read" if operation == "read" else "write")
    shape = np.broadcast(
        *(np.asarray(given) for given in (local_offsets, remote_offsets, immediates)),
        np.asarray(0 if lengths is None else lengths),
        np.asarray(0 if user_data is None else user_data),
    )
    if shape.ndim > 1:
        raise InvalidError("rows", f"arrays of shape {shape.shape}", fix="numbers, or one side")
    near, far = ("target", "source") if operation in ("read", "recv") else ("source", "target")
    row = np.zeros(1, dtype=_abi.SUBMISSION)  # what all have in common
    row["operation"], row["endpoint_id"] = number, endpoint.id
    row["flags"] = link * _abi.SUBMIT_LINK | checksum * _abi.SUBMIT_CHECKSUM
    row[f"{near}_id"] = here.buffer.id
    row[f"{far}_id"] = 0 if there is None else there.region.id
    rows = np.tile(row.view(np.uint64), (shape.size, 1)).view(_abi.SUBMISSION).reshape(-1)
    rows["user_data"] = np.arange(shape.size) if user_data is None else user_data
    rows["immediate"] = immediates
    length = here.length_bytes if lengths is None else np.asarray(lengths, dtype=np.int64)
    rows["length_bytes"] = length
    start = _within(local_offsets, length, here.length_bytes, "local")
    rows[f"{near}_offset"] = start + here.offset if here.offset else start
    if there is not None:
        start = _within(remote_offsets, length, there.length_bytes, "remote")
        rows[f"{far}_offset"] = start + there.offset if there.offset else start
    return rows


def _within(
    offsets: npt.ArrayLike, length: npt.ArrayLike, room: int, field: str
) -> npt.NDArray[np.int64]:
    """@offsets, if all of them leave @length bytes of @room; else the first that does not."""
    start, size = np.asarray(offsets, dtype=np.int64), np.asarray(length)
    if start.min(initial=0) < 0 or size.min(initial=0) < 0 or (start > room - size).any():
        bad = (start < 0) | (size < 0) | (start > room - size)
        for first in np.flatnonzero(bad)[:1].tolist():
            at, many = (int(np.broadcast_to(each, bad.shape).flat[first]) for each in (start, size))
            raise InvalidError(
                f"rows[{first}].{field}",
                f"{many} bytes from {at} on",
                fix=f"inside the {room} bytes given",
            )
    return start


class KeptRows:
    """Completions of rows, taken from the ring and not yet asked for, in the order they came."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.parts: dict[int, npt.NDArray[np.void]] = {}
        """Under the ring position each was popped at."""
        self.pushed = 0
        self.taken = 0

    def __len__(self) -> int:
        return sum(map(len, self.parts.values())) if self.parts else 0

    @property
    def to_come(self) -> int:
        """Rows whose completion no caller has been given yet."""
        return self.pushed - self.taken + len(self)

    def give(self, limit: int | None) -> npt.NDArray[np.void]:
        """The first @limit of them, or all; not kept any more."""
        with self.lock:
            parts = list(self.parts.values())
            kept = parts[0] if len(parts) == 1 else _joined(parts)
            rest: dict[int, npt.NDArray[np.void]] = {}
            if limit is not None and limit < len(kept):
                rest = {next(iter(self.parts)): kept[limit:]}
                kept = kept[:limit]
            self.parts = rest
            return kept


def _joined(parts: list[npt.NDArray[np.void]]) -> npt.NDArray[np.void]:
    return np.concatenate(parts) if parts else np.empty(0, dtype=_abi.COMPLETION)
