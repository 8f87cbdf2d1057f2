# SPDX-License-Identifier: MIT
"""What can be set on a cuda device, each with what it costs or brings."""

from __future__ import annotations

import dataclasses
from typing import Final, Literal

from dmaplane._errors import InvalidError
from dmaplane.stream.cuda._program import HINTS, Hint

Order = Literal["stream", "during-call", "any"]
ORDERS: Final[dict[Order, int]] = {"stream": 1, "during-call": 2, "any": 3}
"""As CUmemcpySrcAccessOrder numbers them."""
Engine = Literal["registers", "bulk"]
BusySource = Literal["nvml", "always", "never"]
BarSource = Literal["auto", "probe", "never"]
BULK_SLOTS: Final = (4, 8, 16, 32)
PIECE_MAX: Final = 64 << 30
"""One registration of 512 GiB and more fails on drivers from 580 on; this is well below."""
PATIENCE_MAX_S: Final = 86_400


@dataclasses.dataclass(frozen=True, slots=True)
class CudaSettings:
    """Settings of a device. The defaults are those of docs/streams.md."""

    groups: int = 8
    """Thread groups of the copying kernel, so at most as many processors of the device."""
    threads: int = 256
    """Of a group; a warp of them has 4 KiB in flight."""
    engine: Engine = "registers"
    """What a kernel copies with. "bulk" needs sm_90, and multiples of 16 bytes."""
    bulk_slots: int = 8
    """4 KiB pieces a group has in its ring."""
    hint: Hint = "streaming"
    """How host memory is read and written by a kernel."""
    gather_groups: int = 8
    """Thread groups of the kernels that gather and scatter inside the device's memory."""
    gather_threads: int = 512
    slot_bytes: int = 8 << 20
    """Of one staging slot; a lane that stages has `slots` of them."""
    slots: int = 4
    order: Order = "stream"
    """When a batched copy may read its sources. "any" is safe only for sources that nothing
    before it on the stream writes."""
    overlap: bool = False
    """Asks a batched copy to leave the processors alone, from CUDA 13.1 on."""
    batch_max: int = 4096
    """Copies of one batched call; more become several, so that another stream gets a turn."""
    descriptor_bytes: int = 8 << 20
    """Pinned memory a lane has for the descriptors of its kernels."""
    piece_bytes: int = 1 << 30
    """Host memory is registered in pieces of this size."""
    priority: int | None = None
    """Of the streams; None is the highest there is (the lowest number), 0 the lowest. At 0 the
    kernels that copy wait for those of whoever computes beside them."""
    # Not in the text that is a profile's key: it changes no copy's cost.
    patience_s: float = dataclasses.field(default=60.0, repr=False)
    """How long what is in a stream may take when it has to end (close(), a full ring, a copy by
    the processor): after that the device is lost. Longer than any work of your own streams
    that copies wait for."""
    busy: BusySource = "nvml"
    """Who says whether the device is busy."""
    bar: BarSource = "auto"
    """"auto" looks for a BAR mapping where the driver says it has them, "probe" tries anyway."""

    def __post_init__(self) -> None:
        """InvalidError for what no device can do."""
        whole = (
            ("groups", 1, 1024),
            ("gather_groups", 1, 1024),
            ("slots", 2, 64),
            ("batch_max", 1, 1 << 20),
        )
        for field, low, high in whole:
            value = getattr(self, field)
            if not low <= value <= high:
                raise InvalidError(field, f"{value}", fix=f"{low} .. {high}")
        if self.priority is not None and not -64 <= self.priority <= 0:
            raise InvalidError("priority", f"{self.priority}", fix="-64 (first) .. 0, or None")
        if not 0 < self.patience_s <= PATIENCE_MAX_S:
            raise InvalidError(
                "patience_s", f"{self.patience_s}", fix=f"seconds > 0, at most {PATIENCE_MAX_S}"
            )
        for field in ("threads", "gather_threads"):
            value = getattr(self, field)
            if value % 32 or not 32 <= value <= 512:
                raise InvalidError(field, f"{value}", fix="a multiple of 32, at most 512")
        sized = (
            ("slot_bytes", 64 << 10, 1 << 30),
            ("descriptor_bytes", 64 << 10, 1 << 30),
            ("piece_bytes", 4 << 10, PIECE_MAX),
        )
        for field, low, high in sized:
            value = getattr(self, field)
            if value % 4096 or not low <= value <= high:
                raise InvalidError(field, f"{value}", fix=f"a multiple of 4096, {low} .. {high}")
        chosen: tuple[tuple[str, tuple[object, ...]], ...] = (
            ("bulk_slots", BULK_SLOTS),
            ("engine", ("registers", "bulk")),
            ("hint", tuple(HINTS)),
            ("order", tuple(ORDERS)),
            ("busy", ("nvml", "always", "never")),
            ("bar", ("auto", "probe", "never")),
        )
        for field, allowed in chosen:
            if getattr(self, field) not in allowed:
                raise InvalidError(
                    field,
                    f"{getattr(self, field)!r}",
                    fix=f"one of {', '.join(str(one) for one in allowed)}",
                )
