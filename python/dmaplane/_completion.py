# SPDX-License-Identifier: MIT
"""Completions: what a plane says about a finished operation, and what a caller raises of it.

Events are completions nobody submitted anything for: a plane saying that something happened.
"""

from __future__ import annotations

import struct
from typing import Any, Final, Literal, NamedTuple

from dmaplane import _abi
from dmaplane._errors import DmaplaneError, error_from
from dmaplane._library import verbs_refused
from dmaplane._plane import PATHS, Path

OPERATIONS: Final = {
    _abi.OP_NOP: "nop",
    _abi.OP_FILL: "fill",
    _abi.OP_COPY: "copy",
    _abi.OP_FENCE: "fence",
    _abi.OP_SEND: "send",
    _abi.OP_RECV: "recv",
    _abi.OP_WRITE: "write",
    _abi.OP_WRITE_IMM: "write_imm",
    _abi.OP_READ: "read",
}
_REMOTE: Final = (_abi.OP_WRITE, _abi.OP_WRITE_IMM, _abi.OP_READ)
ENTRY: Final = struct.Struct("<QiBBHQII")

EventName = Literal["write_imm", "endpoint_lost", "buffer_revoked", "connection", "unknown"]
_EVENTS: Final[dict[int, EventName]] = {
    _abi.EVENT_WRITE_IMM: "write_imm",
    _abi.EVENT_ENDPOINT_LOST: "endpoint_lost",
    _abi.EVENT_BUFFER_REVOKED: "buffer_revoked",
    _abi.EVENT_CONNECTION: "connection",
}


class Completion(NamedTuple):
    """One completion; the fields are those of struct dmp_completion."""

    user_data: int
    result: int
    """0, or a negative errno."""
    operation: int
    path_number: int
    flags: int
    length_bytes: int
    """Bytes moved."""
    immediate: int
    checksum_bits: int

    @property
    def ok(self) -> bool:
        """True if the operation succeeded."""
        return self.result == 0

    @property
    def path(self) -> Path:
        """What carried the bytes; "none" if none moved (L8)."""
        return PATHS[self.path_number]

    @property
    def checksum(self) -> int | None:
        """CRC32C of the bytes, if it was asked for."""
        return self.checksum_bits if self.flags & _abi.COMPLETE_CHECKSUM else None

    @property
    def error(self) -> DmaplaneError | None:
        """The exception of a failed operation, not raised."""
        if self.result == 0:
            return None
        detail = f"{self.length_bytes} bytes were moved" if self.length_bytes else ""
        if not detail and self.operation in _REMOTE:
            detail = verbs_refused(self.result)
        return error_from(
            self.result, OPERATIONS.get(self.operation, f"operation {self.operation}"), detail
        )


class Event(NamedTuple):
    """What a plane told a channel by itself."""

    name: EventName
    id: int
    """Of the object it is about: for "buffer_revoked", Buffer.id."""
    result: int
    """0, or a negative errno."""


def event_of(fields: tuple[Any, ...]) -> Event:
    """The event that a completion with COMPLETE_EVENT is."""
    return Event(_EVENTS.get(fields[2], "unknown"), fields[0], fields[1])
