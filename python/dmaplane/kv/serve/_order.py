# SPDX-License-Identifier: MIT
"""What decode says to prefill, and back, in the opaque bytes of ASK and SAY.

An order is the tokens of a prompt: a header of 8 bytes (magic, version, count) and 32-bit numbers,
little-endian. A report is what became of it: JSON of known fields, each bounded.

Invariants: decode() of whatever a peer sent gives an order or a report within its bounds, or
ProtocolError; nothing is allocated by a number that was not compared with the bytes there are.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dmaplane._errors import InvalidError, ProtocolError

if TYPE_CHECKING:
    import numpy.typing as npt

_HEAD: Final = struct.Struct("<2sHI")
_MAGIC: Final = b"KO"
_VERSION: Final = 1
TOKENS_MAX: Final = 16000
"""They fit into what one ASK may carry."""
REPORT_BYTES_MAX: Final = 64 << 10
_TEXT_MAX: Final = 1000
LAYERS_MAX: Final = 1024


def clock_name() -> str:
    """The same for processes whose time.monotonic() can be compared: one boot, one machine."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read(_TEXT_MAX).strip()
    except OSError:
        return ""


def encode_order(tokens: npt.NDArray[np.int64]) -> bytes:
    """The bytes that ask for the cache of these tokens."""
    if not 0 < len(tokens) <= TOKENS_MAX:
        raise InvalidError("tokens", f"{len(tokens)} of them", fix=f"1 .. {TOKENS_MAX}")
    return _HEAD.pack(_MAGIC, _VERSION, len(tokens)) + tokens.astype("<u4").tobytes()


def decode_order(data: bytes, *, vocabulary: int) -> npt.NDArray[np.int64]:
    """The tokens somebody asks for; ProtocolError if these are none."""
    if len(data) < _HEAD.size:
        raise ProtocolError(f"an order of {len(data)} bytes has no header")
    magic, version, count = _HEAD.unpack_from(data)
    if magic != _MAGIC or version != _VERSION:
        raise ProtocolError("this is no order of a version known here; same release on both sides")
    if not 0 < count <= TOKENS_MAX or len(data) != _HEAD.size + 4 * count:
        raise ProtocolError(f"an order of {count} tokens in {len(data)} bytes")
    tokens = np.frombuffer(data, dtype="<u4", offset=_HEAD.size).astype(np.int64)
    if int(tokens.max()) >= vocabulary:
        raise ProtocolError(f"token {int(tokens.max())} is beyond the vocabulary of {vocabulary}")
    return tokens


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """What became of an order. Seconds count from its announcement."""

    request: str
    error: str = ""
    """Why there will be no cache; empty if there is one."""
    clock: str = ""
    """Whose time `began` is of: equal on both sides if they have one clock."""
    began: float = 0.0
    """When it was announced."""
    queued_seconds: float = 0.0
    prefill_seconds: float = 0.0
    sent_seconds: float = 0.0
    """When the last byte was acknowledged."""
    stalls: int = 0
    layers: tuple[float, ...] = ()
    """When each layer was computed."""

    def encode(self) -> bytes:
        """As bytes for say()."""
        fields = dataclasses.asdict(self)
        fields["error"] = self.error[:_TEXT_MAX]
        fields["layers"] = [round(moment, 6) for moment in self.layers]
        return json.dumps(fields, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, data: bytes) -> Report:
        """What somebody said; ProtocolError if it is no report."""
        if len(data) > REPORT_BYTES_MAX:
            raise ProtocolError(f"a report of {len(data)} bytes; {REPORT_BYTES_MAX} at most")
        try:
            said = json.loads(data)
            if not isinstance(said, dict) or set(said) != {f.name for f in dataclasses.fields(cls)}:
                raise ValueError("other fields than a report has")
            layers = said["layers"]
            if not isinstance(layers, list) or len(layers) > LAYERS_MAX:
                raise ValueError("layers is no list of moments")
            return cls(
                request=_text(said, "request"),
                error=_text(said, "error"),
                clock=_text(said, "clock"),
                began=_seconds(said["began"]),
                queued_seconds=_seconds(said["queued_seconds"]),
                prefill_seconds=_seconds(said["prefill_seconds"]),
                sent_seconds=_seconds(said["sent_seconds"]),
                stalls=int(_seconds(said["stalls"])),
                layers=tuple(map(_seconds, layers)),
            )
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"what the peer said is no report: {error}") from None


def _text(said: dict[str, Any], field: str) -> str:
    value = said[field]
    if not isinstance(value, str) or len(value) > _TEXT_MAX:
        raise ValueError(f"{field} is no text of at most {_TEXT_MAX} characters")
    return value


def _seconds(value: object) -> float:
    if type(value) not in (int, float):
        raise ValueError("a number is none")
    number = float(value)  # type: ignore[arg-type]
    if not math.isfinite(number) or not 0 <= number < 1e9:
        raise ValueError("a number is out of bounds")
    return number
