# SPDX-License-Identifier: MIT
"""What Sender and Receiver say to each other: control messages and immediates, byte for byte.

A message is a header of 32 bytes and a body, at most 256 KiB together, little-endian:

    magic "DKVT" | version | kind | zero | tag | serial | length of the body | CRC32C | zero

The tag names a transfer in the immediates of its chunks and is used again; the serial is its
number on this connection and never comes twice, so a late word about an old transfer is told
from one about the new. The CRC32C is of the whole message with that field zero.

Nothing here is trusted: whatever is too long, too short, unknown or not zero where zero belongs
is a ProtocolError. Every length is compared with what is there before it is used.
Owner of nothing; all values.
"""

from __future__ import annotations

import dataclasses
import enum
import struct
from typing import TYPE_CHECKING, Final

import numpy as np

from dmaplane._errors import InvalidError, LayoutError, ProtocolError
from dmaplane._library import crc32c
from dmaplane.kv._layout import LAYOUT_BYTES, Layout

if TYPE_CHECKING:
    import numpy.typing as npt

MESSAGE_BYTES_MAX: Final = 256 << 10
REQUEST_BYTES_MAX: Final = 256
TRACE_BYTES_MAX: Final = 256
METADATA_BYTES_MAX: Final = 64 << 10
PAYLOAD_BYTES_MAX: Final = 64 << 10
REASON_BYTES_MAX: Final = 1024
KEY_BYTES_MAX: Final = 64
CHUNK_BYTES_MIN: Final = 4 << 10
CHUNK_BYTES_MAX: Final = 64 << 20
CHUNKS_MAX: Final = 1 << 16
"""Of one transfer, all layers: what the ordinal in an immediate can count."""
TAGS_MAX: Final = 1 << 16
TRANSFERS_MAX: Final = 1024
"""Open at once on one connection, at most."""
TOKENS_MAX: Final = 1 << 30
BLOCKS_MAX: Final = (1 << 32) - 1
ASKS_MAX: Final = 256
"""Asks, and as many says, that may be on the way or unread; GRANT says what was read."""
_TAG_BITS: Final = 16
assert CHUNKS_MAX.bit_length() - 1 + TAGS_MAX.bit_length() - 1 == 32, "they fill the immediate"

_MAGIC: Final = b"DKVT"
_VERSION: Final = 2
_HEADER: Final = struct.Struct("<4sBBHIIIIQ")
HEADER_BYTES: Final = _HEADER.size
assert HEADER_BYTES == 32
BODY_BYTES_MAX: Final = MESSAGE_BYTES_MAX - HEADER_BYTES

SUM: Final = np.dtype([("ordinal", "<u4"), ("crc", "<u4")])
"""One chunk in SUMS."""
SUMS_MAX: Final = BODY_BYTES_MAX // SUM.itemsize
_ACCEPT: Final = struct.Struct("<II")
BLOCKS_PER_ACCEPT: Final = 60_000
ROOM_BLOCKS_MAX: Final = 40_000
"""So many blocks go into one ASK, beside its request and payload."""
ROOMS_MAX: Final = 1024
"""That are open on one connection."""
ROOMS_BLOCKS_MAX: Final = 1 << 22
"""In all of them."""


class Kind(enum.IntEnum):
    """What a message is; numbers are never used again."""

    HELLO = 1
    """Both, first: role, layout, blocks, the key of the receiver's region."""
    ASK = 2
    """Receiver: opaque bytes, "compute this"; with blocks it may go to at once, a room."""
    WITHDRAW = 3
    """Receiver: what was asked is not wanted any more."""
    ANNOUNCE = 4
    """Sender: a transfer, and all its numbers."""
    ACCEPT = 5
    """Receiver: the blocks it goes to, in parts."""
    REFUSE = 6
    """Receiver: it is not wanted."""
    SUMS = 7
    """Sender: CRC32C of chunks it has written."""
    DONE = 8
    """Receiver: everything is here, checked and published."""
    ABORT = 9
    """Receiver: stop."""
    ABORTED = 10
    """Sender: stopped, and nothing of it is on the way any more."""
    SAY = 11
    """Both: opaque bytes."""
    GRANT = 12
    """Both: how many asks and says were read, in all."""
    BYE = 13
    """Both, last: the connection ends in good order."""
    GONE = 14
    """Sender: nothing will be written to that room."""


class Role(enum.IntEnum):
    """Which end of the transfers this is."""

    SENDER = 1
    RECEIVER = 2


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """One that was taken apart; the body is still bytes."""

    kind: Kind
    tag: int
    serial: int
    body: bytes


def pack(kind: Kind, body: bytes = b"", *, tag: int = 0, serial: int = 0) -> bytes:
    """A message as it goes out."""
    if len(body) > BODY_BYTES_MAX:
        raise InvalidError("body", f"{len(body)} bytes", fix=f"{BODY_BYTES_MAX} at most")
    fields = (_MAGIC, _VERSION, kind, 0, tag, serial, len(body))
    plain = _HEADER.pack(*fields, 0, 0) + body
    return _HEADER.pack(*fields, crc32c(plain), 0) + body


def unpack(data: bytes) -> Message:
    """The message that @data is; ProtocolError if it is none."""
    if len(data) < HEADER_BYTES:
        raise ProtocolError(f"a message of {len(data)} bytes; its header has {HEADER_BYTES}")
    magic, version, number, zero, tag, serial, length, crc, rest = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise ProtocolError("this is no KV transfer; the peer speaks something else")
    if version != _VERSION:
        raise ProtocolError(f"version {version}; this side speaks {_VERSION}: update the older")
    if zero or rest or tag >= TAGS_MAX or length != len(data) - HEADER_BYTES:
        raise ProtocolError("a header whose fields do not fit each other")
    plain = _HEADER.pack(magic, version, number, 0, tag, serial, length, 0, 0)
    if crc32c(data[HEADER_BYTES:], crc32c(plain)) != crc:
        raise ProtocolError("a message that changed on the way; its CRC32C is another")
    try:
        kind = Kind(number)
    except ValueError:
        raise ProtocolError(f"a message of kind {number}, which nobody knows") from None
    return Message(kind, tag, serial, data[HEADER_BYTES:])


def immediate_of(tag: int, ordinal: int) -> int:
    """Tag in the high half, ordinal in the low; both were checked when they were given out."""
    return ordinal | tag << _TAG_BITS


def tags_and_ordinals(
    immediates: npt.NDArray[np.uint32],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Every immediate is a tag and an ordinal; whether they mean anything is another matter."""
    wide = immediates.astype(np.int64)
    return wide >> _TAG_BITS, wide & (CHUNKS_MAX - 1)


# ---- bodies


class Reader:
    """Takes a body apart from the front; ProtocolError as soon as it is too short."""

    __slots__ = ("_at", "_body", "_what")

    def __init__(self, what: Kind, body: bytes) -> None:
        self._what = what.name
        self._body = body
        self._at = 0

    def numbers(self, form: struct.Struct) -> tuple[int, ...]:
        """As @form has them."""
        return form.unpack(self.take(form.size))

    def take(self, length: int) -> bytes:
        """So many bytes."""
        if length > len(self._body) - self._at:
            raise ProtocolError(f"{self._what} that ends too early")
        self._at += length
        return self._body[self._at - length : self._at]

    def text(self, length: int, most: int) -> str:
        """UTF-8 that can be shown to people."""
        if length > most:
            raise ProtocolError(f"{self._what} with a text of {length} bytes; {most} at most")
        try:
            told = self.take(length).decode()
        except UnicodeDecodeError:
            raise ProtocolError(f"{self._what} with a text that is not UTF-8") from None
        return told

    def rest(self, most: int) -> bytes:
        """All that is left."""
        left = len(self._body) - self._at
        if left > most:
            raise ProtocolError(f"{self._what} with {left} bytes; {most} at most")
        return self.take(left)

    def end(self) -> None:
        """Nothing may be left."""
        if self._at != len(self._body):
            raise ProtocolError(f"{self._what} with {len(self._body) - self._at} bytes too many")


def checked_text(field: str, text: str, most: int, *, empty: bool = True) -> bytes:
    """UTF-8 of what a caller gave."""
    if not isinstance(text, str) or not (text or empty):
        raise InvalidError(field, f"{text!r}", fix="text that is not empty")
    encoded = text.encode()
    if len(encoded) > most:
        raise InvalidError(field, f"{len(encoded)} bytes", fix=f"{most} at most")
    return encoded


_HELLO: Final = struct.Struct("<IIIIQQQ")


@dataclasses.dataclass(frozen=True, slots=True)
class Hello:
    """Who we are."""

    role: Role
    layout: Layout
    blocks: int
    transfers: int
    """That may be open at once."""
    layer_bytes: int
    """From one layer to the next in the region."""
    first_byte: int
    """Where layer 0 starts in the region."""
    window_bytes: int
    """That are granted to the peer at once; no write with an immediate may be longer."""
    key: bytes
    """Of the receiver's region; a sender has none."""

    def encode(self) -> bytes:
        """The body of HELLO."""
        numbers = _HELLO.pack(
            self.role,
            self.blocks,
            self.transfers,
            len(self.key),
            self.layer_bytes,
            self.first_byte,
            self.window_bytes,
        )
        return numbers + self.layout.encode() + self.key

    @classmethod
    def decode(cls, body: bytes) -> Hello:
        """Every number bounded, and in agreement with the layout."""
        reader = Reader(Kind.HELLO, body)
        role, blocks, transfers, key_bytes, *lengths = reader.numbers(_HELLO)
        layer_bytes, first_byte, window_bytes = lengths
        try:
            layout = Layout.decode(reader.take(LAYOUT_BYTES))
        except LayoutError as error:
            raise ProtocolError(f"HELLO: {error}") from error
        key = reader.rest(KEY_BYTES_MAX)
        if role not in (Role.SENDER, Role.RECEIVER):
            raise ProtocolError(f"HELLO of role {role}, which nobody knows")
        if not blocks or not 1 <= transfers <= TRANSFERS_MAX or key_bytes != len(key):
            raise ProtocolError("HELLO with numbers that cannot be")
        if bool(key) != (role == Role.RECEIVER):
            raise ProtocolError("HELLO with a key where none belongs, or without one")
        if layer_bytes < blocks * layout.block_bytes or first_byte >> 62 or layer_bytes >> 48:
            raise ProtocolError("HELLO whose layers do not fit its layout")
        numbers = blocks, transfers, layer_bytes, first_byte, window_bytes
        return cls(Role(role), layout, *numbers, key)


_ANNOUNCE: Final = struct.Struct("<IIIIQiIIHHI")
_CHECKSUM: Final = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Announce:
    """A transfer before it begins."""

    request: str
    trace: str
    metadata: bytes
    tokens: int
    layers: int
    layer_chunks: int
    chunk_bytes: int
    layer_bytes: int
    """Of this transfer in each layer: what the sender contributes, not the pool's."""
    priority: int
    checksum: bool

    @property
    def chunks(self) -> int:
        """In all layers."""
        return self.layers * self.layer_chunks

    def encode(self, room: int = 0) -> bytes:
        """The body of ANNOUNCE. @room: where it goes, at once; 0: it waits for ACCEPT."""
        request, trace = self.request.encode(), self.trace.encode()
        numbers = _ANNOUNCE.pack(
            self.tokens,
            self.layers,
            self.layer_chunks,
            self.chunk_bytes,
            self.layer_bytes,
            self.priority,
            _CHECKSUM if self.checksum else 0,
            room,
            len(request),
            len(trace),
            len(self.metadata),
        )
        return numbers + request + trace + self.metadata

    @classmethod
    def decode(cls, body: bytes) -> tuple[Announce, int]:
        """And its room. Bounded; what the layouts make of it the receiver compares."""
        reader = Reader(Kind.ANNOUNCE, body)
        numbers = reader.numbers(_ANNOUNCE)
        tokens, layers, layer_chunks, chunk_bytes, layer_bytes, priority, flags, room = numbers[:8]
        request_bytes, trace_bytes, metadata_bytes = numbers[8:]
        request = reader.text(request_bytes, REQUEST_BYTES_MAX)
        trace = reader.text(trace_bytes, TRACE_BYTES_MAX)
        metadata = reader.rest(METADATA_BYTES_MAX)
        if len(metadata) != metadata_bytes or flags & ~_CHECKSUM or not request:
            raise ProtocolError("ANNOUNCE whose fields do not fit each other")
        if not 1 <= tokens <= TOKENS_MAX:
            raise ProtocolError(f"ANNOUNCE of {tokens} tokens")
        if not CHUNK_BYTES_MIN <= chunk_bytes <= CHUNK_BYTES_MAX:
            raise ProtocolError(f"ANNOUNCE with chunks of {chunk_bytes} bytes")
        if not layer_bytes or layer_chunks != -(-layer_bytes // chunk_bytes):
            raise ProtocolError("ANNOUNCE whose chunks do not make up a layer")
        if not 1 <= layers * layer_chunks <= CHUNKS_MAX:
            raise ProtocolError(f"ANNOUNCE of {layers * layer_chunks} chunks; {CHUNKS_MAX} at most")
        announce = cls(
            request,
            trace,
            metadata,
            tokens,
            layers,
            layer_chunks,
            chunk_bytes,
            layer_bytes,
            priority,
            bool(flags & _CHECKSUM),
        )
        return announce, room


def encode_accept(blocks: npt.NDArray[np.int64]) -> list[bytes]:
    """Bodies of ACCEPT, as many as it takes."""
    narrow, total = blocks.astype("<u4"), len(blocks)
    return [
        _ACCEPT.pack(first, total) + narrow[first : first + BLOCKS_PER_ACCEPT].tobytes()
        for first in range(0, total, BLOCKS_PER_ACCEPT)
    ]


def decode_accept(body: bytes) -> tuple[int, int, npt.NDArray[np.int64]]:
    """Index of the first block in it, how many in all, and the blocks."""
    reader = Reader(Kind.ACCEPT, body)
    first, total = reader.numbers(_ACCEPT)
    told = reader.rest(4 * BLOCKS_PER_ACCEPT)
    if not told or len(told) % 4 or first + len(told) // 4 > total:
        raise ProtocolError("ACCEPT whose blocks do not fit its numbers")
    return first, total, np.frombuffer(told, dtype="<u4").astype(np.int64)


def decode_sums(body: bytes) -> npt.NDArray[np.void]:
    """An array of SUM."""
    if not body or len(body) % SUM.itemsize:
        raise ProtocolError("SUMS with part of a sum")
    return np.frombuffer(body, dtype=SUM)


_REASON: Final = struct.Struct("<i")


@dataclasses.dataclass(frozen=True, slots=True)
class Reason:
    """Why a transfer was refused or ended, and which chunk it is about, if any."""

    cause: str
    chunk: int | None = None

    def encode(self) -> bytes:
        """The body of REFUSE, ABORT and ABORTED."""
        told = self.cause.encode()[:REASON_BYTES_MAX]
        number = _REASON.pack(-1 if self.chunk is None else self.chunk)
        return number + told.decode(errors="ignore").encode()

    @classmethod
    def decode(cls, kind: Kind, body: bytes) -> Reason:
        """It is shown to people: nothing unprintable stays."""
        reader = Reader(kind, body)
        (chunk,) = reader.numbers(_REASON)
        told = reader.text(len(body) - _REASON.size, REASON_BYTES_MAX)
        if not -1 <= chunk < CHUNKS_MAX:
            raise ProtocolError(f"{kind.name} about chunk {chunk}")
        shown = "".join(each if each.isprintable() else " " for each in told)
        return cls(shown, None if chunk < 0 else chunk)


_ASK: Final = struct.Struct("<HI")
_GRANT: Final = struct.Struct("<II")


_NO_BLOCKS: Final = np.zeros(0, dtype=np.int64)


def encode_ask(
    request: str, payload: bytes = b"", room: npt.NDArray[np.int64] = _NO_BLOCKS
) -> bytes:
    """The body of ASK; of WITHDRAW with the request alone. @room: blocks, rising."""
    named = checked_text("request", request, REQUEST_BYTES_MAX, empty=False)
    blocks = room.astype("<u4").tobytes()
    return _ASK.pack(len(named), len(room)) + named + blocks + checked_payload(payload)


def decode_ask(kind: Kind, body: bytes) -> tuple[str, bytes, npt.NDArray[np.uint32]]:
    """Request, payload, and the blocks of its room."""
    reader = Reader(kind, body)
    length, blocks = reader.numbers(_ASK)
    if blocks > (ROOM_BLOCKS_MAX if kind is Kind.ASK else 0):
        raise ProtocolError(f"{kind.name} with a room of {blocks} blocks")
    request = reader.text(length, REQUEST_BYTES_MAX)
    room = np.frombuffer(reader.take(4 * blocks), dtype="<u4")
    payload = reader.rest(PAYLOAD_BYTES_MAX if kind is Kind.ASK else 0)
    if not request or (room[1:] <= room[:-1]).any():
        raise ProtocolError(f"{kind.name} of nothing, or to blocks that are not rising")
    return request, payload, room


def checked_payload(payload: bytes) -> bytes:
    """Opaque bytes that a caller gave."""
    if not isinstance(payload, bytes | bytearray | memoryview):
        raise InvalidError("payload", f"{type(payload).__name__}", fix="bytes")
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise InvalidError(
            "payload", f"{len(payload)} bytes", fix=f"{PAYLOAD_BYTES_MAX} at most, or a transfer"
        )
    return bytes(payload)


def encode_grant(asks: int, says: int) -> bytes:
    """The body of GRANT: totals, modulo 2**32."""
    return _GRANT.pack(asks & 0xFFFFFFFF, says & 0xFFFFFFFF)


def decode_grant(body: bytes) -> tuple[int, int]:
    """Asks and says read, modulo 2**32."""
    reader = Reader(Kind.GRANT, body)
    asks, says = reader.numbers(_GRANT)
    reader.end()
    return asks, says
