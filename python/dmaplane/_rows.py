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

from dmaplane import _abi
from dmaplane._errors import InvalidError

if TYPE_CHECKING:
    import numpy.typing as npt

_FLAGS: Final = _abi.SUBMIT_LINK | _abi.SUBMIT_CHECKSUM | _abi.SUBMIT_VERIFY | _abi.SUBMIT_NOWAIT
_EMPTY: Final = (_abi.OP_NOP, _abi.OP_FENCE)
_LOCAL: Final = (_abi.OP_NOP, _abi.OP_FILL, _abi.OP_COPY, _abi.OP_FENCE)
_KNOWN: Final = (
    *_LOCAL,
    _abi.OP_SEND,
    _abi.OP_RECV,
    _abi.OP_WRITE,
    _abi.OP_WRITE_IMM,
    _abi.OP_READ,
)


def checked(rows: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """@rows, contiguous; InvalidError names the first bad row and its field."""
    if not isinstance(rows, np.ndarray) or rows.dtype != _abi.SUBMISSION or rows.ndim != 1:
        raise InvalidError(
            "rows", "not a one-dimensional array of SUBMISSION", fix="np.zeros(n, SUBMISSION)"
        )
    if not rows.flags.c_contiguous:
        rows = np.ascontiguousarray(rows)
    if len(rows):
        # One pass over the memory settles the common case: everything is a NOP, or
        # every row is a plain FILL or COPY with nothing else set.
        bits = np.bitwise_or.reduce(rows.view(np.uint64).reshape(-1, 8), axis=0).tolist()
        header, user_data = bits[0], bits[1]
        if (
            user_data >> 63
            or header >> 32
            or header & 0xFFFF > _abi.OP_FENCE
            or header >> 16 & ~_abi.SUBMIT_LINK
            or (any(bits[3:]) and not _plain(rows, bits))
        ):
            _examine(rows)
    return rows


def _plain(rows: npt.NDArray[np.void], bits: list[int]) -> bool:
    """True if all rows are COPY without a checksum, with bytes to move."""
    return (
        bits[7] == 0
        and bool((rows["operation"] == _abi.OP_COPY).all())
        and bool(rows["length_bytes"].all())
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
