# SPDX-License-Identifier: MIT
"""dmaplane: buffers that are pinned, placed, shared and safe, and channels that move them.

with dmaplane.open() as plane:
    src = plane.buffer(1 << 20)
    dst = plane.buffer(1 << 20)
    with plane.channel() as ch:
        ch.copy(dst, src).wait(timeout=1.0)
"""

from dmaplane import _abi as abi
from dmaplane._abi import COMPLETION, SUBMISSION
from dmaplane._buffer import Buffer, BufferRange
from dmaplane._channel import Channel
from dmaplane._completion import Completion, Event
from dmaplane._endpoint import Endpoint
from dmaplane._errors import (
    AddressInUseError,
    BusyError,
    CallbackError,
    ChecksumError,
    ClosedError,
    CopyError,
    DeviceLostError,
    DmaplaneError,
    InvalidError,
    LayoutError,
    LimitError,
    NoMemoryError,
    NotAllowedError,
    NotFoundError,
    OperationCancelledError,
    PeerLostError,
    ProtocolError,
    StaleEpochError,
    SystemCallError,
    TimedOutError,
    TransferError,
    UnreachableError,
    UnsupportedError,
    WouldBlock,
)
from dmaplane._export import Export
from dmaplane._immediate import Immediate
from dmaplane._ledger import Ledger
from dmaplane._library import crc32c, now_ns
from dmaplane._listener import Listener
from dmaplane._open import open
from dmaplane._operation import Operation
from dmaplane._placement import Placement
from dmaplane._plane import Capability, Limits, Plane
from dmaplane._region import Region, Registration, RemoteRange, RemoteRegion
from dmaplane._statistics import Histogram, Statistics
from dmaplane._storage import Holders
from dmaplane._topology import Device, Node, Topology

__version__ = "0.1.0"

__all__ = [
    "COMPLETION",
    "SUBMISSION",
    "AddressInUseError",
    "Buffer",
    "BufferRange",
    "BusyError",
    "CallbackError",
    "Capability",
    "Channel",
    "ChecksumError",
    "ClosedError",
    "Completion",
    "CopyError",
    "Device",
    "DeviceLostError",
    "DmaplaneError",
    "Endpoint",
    "Event",
    "Export",
    "Histogram",
    "Holders",
    "Immediate",
    "InvalidError",
    "LayoutError",
    "Ledger",
    "LimitError",
    "Limits",
    "Listener",
    "NoMemoryError",
    "Node",
    "NotAllowedError",
    "NotFoundError",
    "Operation",
    "OperationCancelledError",
    "PeerLostError",
    "Placement",
    "Plane",
    "ProtocolError",
    "Region",
    "Registration",
    "RemoteRange",
    "RemoteRegion",
    "StaleEpochError",
    "Statistics",
    "SystemCallError",
    "TimedOutError",
    "Topology",
    "TransferError",
    "UnreachableError",
    "UnsupportedError",
    "WouldBlock",
    "__version__",
    "abi",
    "crc32c",
    "now_ns",
    "open",
]
