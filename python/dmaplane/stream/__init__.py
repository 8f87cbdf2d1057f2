# SPDX-License-Identifier: MIT
"""Copy streams: thousands of blocks a call between host pools and a device's memory, in order.

    from dmaplane import stream

    with stream.open_device("sim") as device, stream.CopyStream(device) as copying:
        copying.copy(stream.Copies.one(destination, source, length)).wait()

The parts, each knowing only those before it: copies, registry, device, stream, and beside it
pool and choice. docs/streams.md is the guide, docs/design/streams.md the reasons. Importing
this imports nothing of CUDA.
"""

from __future__ import annotations

from dmaplane.stream._choice import Choice, Estimate
from dmaplane.stream._chooser import CalibrationWarning, Chooser
from dmaplane.stream._copies import Copies, Direction, Grid
from dmaplane.stream._device import (
    TIERS,
    Device,
    DeviceMemory,
    Lane,
    Marker,
    Tier,
    TierName,
    open_device,
    tier_of,
)
from dmaplane.stream._extents import Extent, SpanAccount
from dmaplane.stream._operation import Operation, StreamEvent
from dmaplane.stream._pool import HostPool, PoolStatistics
from dmaplane.stream._profile import Profile
from dmaplane.stream._registration import Registration
from dmaplane.stream._registry import Hold, Range, Registry
from dmaplane.stream._schedule import StreamStatistics
from dmaplane.stream._stream import CopyStream

__all__ = [
    "TIERS",
    "CalibrationWarning",
    "Choice",
    "Chooser",
    "Copies",
    "CopyStream",
    "Device",
    "DeviceMemory",
    "Direction",
    "Estimate",
    "Extent",
    "Grid",
    "Hold",
    "HostPool",
    "Lane",
    "Marker",
    "Operation",
    "PoolStatistics",
    "Profile",
    "Range",
    "Registration",
    "Registry",
    "SpanAccount",
    "StreamEvent",
    "StreamStatistics",
    "Tier",
    "TierName",
    "open_device",
    "tier_of",
]
