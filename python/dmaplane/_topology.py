# SPDX-License-Identifier: MIT
"""What the machine has: NUMA nodes, NICs, GPUs, as the plane sees them."""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import re
from typing import TYPE_CHECKING, Final

from dmaplane import _abi
from dmaplane._errors import InvalidError, error_from

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dmaplane._plane import Plane


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """A NUMA node."""

    node: int
    name: str
    memory_bytes: int
    memory_free_bytes: int
    huge_pages: int
    huge_pages_free: int
    cpus: tuple[int, ...]
    distances: tuple[int, ...]
    """As firmware states them; entry i is the distance to node i, 0 if there is none."""


@dataclasses.dataclass(frozen=True, slots=True)
class Device:
    """A NIC or a GPU."""

    name: str
    node: int
    """-1 if unknown."""
    pci_address: str
    """'0000:3b:00.0', or '' for a device that is not on PCI."""
    vendor_id: int
    device_id: int
    cpus: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Topology:
    """All rows."""

    nodes: tuple[Node, ...]
    nics: tuple[Device, ...]
    gpus: tuple[Device, ...]


def text_of(field: ctypes.Array[ctypes.c_uint8]) -> str:
    """A NUL-ended text field."""
    return bytes(field).split(b"\0", 1)[0].decode(errors="replace")


def _cpus(row: _abi.Topology) -> tuple[int, ...]:
    return tuple(
        word * 64 + bit
        for word, mask in enumerate(row.cpu_mask)
        if mask
        for bit in range(64)
        if mask >> bit & 1
    )


def _rows(plane: Plane, kind: int) -> Iterator[_abi.Topology]:
    index = 0
    while True:
        row = _abi.Topology(size=ctypes.sizeof(_abi.Topology), kind=kind, index=index)
        answer = plane.command(_abi.TOPOLOGY, row)
        if answer == -errno.ENOENT:
            return
        if answer:
            raise error_from(answer, "TOPOLOGY")
        yield row
        index += 1
        if index >= row.count:
            return


def _node(row: _abi.Topology) -> Node:
    distances = tuple(row.distance)
    used = max((i + 1 for i, distance in enumerate(distances) if distance), default=0)
    return Node(
        node=row.node,
        name=text_of(row.name),
        memory_bytes=row.memory_bytes,
        memory_free_bytes=row.memory_free_bytes,
        huge_pages=row.huge_pages,
        huge_pages_free=row.huge_pages_free,
        cpus=_cpus(row),
        distances=distances[:used],
    )


_PCI: Final = re.compile(r"(?:([0-9a-f]{4}):)?([0-9a-f]{2}):([01][0-9a-f])\.([0-7])", re.IGNORECASE)


def pci_number(address: str) -> int:
    """ "0000:3b:00.0" (or without its domain, 0) as the contract has it in `pci_address`."""
    found = _PCI.fullmatch(address)
    if found is None:
        raise InvalidError("peer", f"{address!r} is no PCI address", fix='"0000:3b:00.0"')
    domain, bus, device, function = (int(part or "0", 16) for part in found.groups())
    return domain << 16 | bus << 8 | device << 3 | function


def _device(row: _abi.Topology) -> Device:
    place = row.pci_address
    address = f"{place >> 16:04x}:{place >> 8 & 0xFF:02x}:{place >> 3 & 0x1F:02x}.{place & 7}"
    return Device(
        name=text_of(row.name),
        node=row.node,
        pci_address=address if row.pci_vendor else "",
        vendor_id=row.pci_vendor >> 16,
        device_id=row.pci_vendor & 0xFFFF,
        cpus=_cpus(row),
    )


def read_topology(plane: Plane) -> Topology:
    """One TOPOLOGY command a row."""
    return Topology(
        nodes=tuple(_node(row) for row in _rows(plane, _abi.TOPOLOGY_NODE)),
        nics=tuple(_device(row) for row in _rows(plane, _abi.TOPOLOGY_NIC)),
        gpus=tuple(_device(row) for row in _rows(plane, _abi.TOPOLOGY_GPU)),
    )
