# SPDX-License-Identifier: MIT
"""Network cards as the kernel lists them, and the one that serves a device best.

Read from /sys only: nothing is opened, no right is needed. A card can be used if a port is active
and has an IP address: RDMA connections are asked for by address, and an address of a card is what
makes them go through that card.

Invariants: choosing never falls back. A name that no card has is an error that names those that
exist; a card that cannot be used is an error that says what it lacks.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import pathlib
from typing import TYPE_CHECKING, Final, Literal

from dmaplane._errors import InvalidError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SYSFS: Final = pathlib.Path("/sys")
NONE_HERE: Final = (
    "an RDMA device; for Soft-RoCE: modprobe rdma_rxe; rdma link add rxe0 type rxe netdev NETDEV"
)
_CARDS_MAX: Final = 64
_GIDS_MAX: Final = 256
_NEAR: Final = ("same switch", "same root", "same node", "other node", "unknown")
Nearness = Literal["same switch", "same root", "same node", "other node", "unknown"]
"""Where a card is, as seen from a device: below one PCI bridge, at one root complex, ..."""


@dataclasses.dataclass(frozen=True, slots=True)
class Card:
    """An RDMA device of this machine."""

    name: str
    node: int | None
    """NUMA node, if it has one."""
    place: tuple[str, ...]
    """PCI path from the root complex down; empty for a card that is not on PCI."""
    address: str
    """An IP address that leads to it, "" if there is none."""
    lacks: str
    """What keeps it from being used; "" if nothing does."""

    @property
    def listen_address(self) -> str:
        """To listen on, any port."""
        return f"[{self.address}]:0" if ":" in self.address else f"{self.address}:0"


def _text(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""  # the file is not there on this kernel, or the card has just gone


def _names(folder: pathlib.Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError:
        return []


def pci_place(folder: pathlib.Path) -> tuple[str, ...]:
    """The PCI path of the device that @folder of /sys (or a link to it) is, root first."""
    parts = folder.resolve().parts
    roots = [index for index, part in enumerate(parts) if part.startswith("pci")]
    if not roots or not folder.exists():
        return ()
    below = parts[roots[0] :]
    return tuple(part for part in below if part.startswith("pci") or part.count(":") == 2)


def _hardware(card: pathlib.Path, sysfs: pathlib.Path) -> pathlib.Path:
    """The device behind a card: its own, or for Soft-RoCE its network interface's."""
    own = card / "device"
    parent = _text(card / "parent")
    return own if own.exists() or not parent else sysfs / "class/net" / parent / "device"


def _addresses(card: pathlib.Path) -> Iterator[tuple[bool, str]]:
    """IP addresses of a card's ports that are RoCE v2 GIDs; is the port active?"""
    for port in _names(card / "ports"):
        folder = card / "ports" / port
        active = "ACTIVE" in _text(folder / "state")
        for gid in sorted(_names(folder / "gids")[:_GIDS_MAX], key=lambda name: (len(name), name)):
            if _text(folder / "gid_attrs/types" / gid) != "RoCE v2":
                continue
            try:
                number = ipaddress.IPv6Address(_text(folder / "gids" / gid))
            except ValueError:
                continue
            if int(number) and not number.is_link_local:
                yield active, str(number.ipv4_mapped or number)


def _card(folder: pathlib.Path, sysfs: pathlib.Path) -> Card:
    hardware = _hardware(folder, sysfs)
    node = _text(hardware / "numa_node")
    found = sorted(_addresses(folder), key=lambda each: ":" in each[1])  # IPv4 first, in order
    usable = [address for active, address in found if active]
    if usable:
        lacks = ""
    elif found:
        lacks = "no port of it is active: plug in the cable, or `ip link set NETDEV up`"
    else:
        lacks = "it has no IP address: `ip addr add ADDRESS dev NETDEV` for its interface"
    return Card(
        name=folder.name,
        node=int(node) if node.isdigit() else None,
        place=pci_place(hardware),
        address=usable[0] if usable else "",
        lacks=lacks,
    )


def cards(sysfs: pathlib.Path = SYSFS) -> tuple[Card, ...]:
    """All RDMA devices of this machine, by name."""
    home = sysfs / "class/infiniband"
    return tuple(_card(home / name, sysfs) for name in _names(home)[:_CARDS_MAX])


def nearness(card: Card, *, node: int | None, place: Sequence[str]) -> Nearness:
    """How near @card is to a device on NUMA node @node whose PCI path is @place."""
    shared = _shared(card.place, place)
    if shared > 1:
        return "same switch"
    if shared == 1:
        return "same root"
    if node is None or card.node is None:
        return "unknown"
    return "same node" if card.node == node else "other node"


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    """How many parts two paths begin with in common."""
    count = 0
    for mine, theirs in zip(one, other, strict=False):
        if mine != theirs:
            break
        count += 1
    return count


def _distance(card: Card, node: int | None, place: Sequence[str]) -> tuple[int, int, str]:
    near = _NEAR.index(nearness(card, node=node, place=place))
    hops = len(card.place) + len(place) - 2 * _shared(card.place, place)
    return near, hops, card.name


def choose(
    name: str, found: Sequence[Card], *, node: int | None = None, place: Sequence[str] = ()
) -> Card:
    """The card called @name, or for "auto" the nearest one that can be used.

    InvalidError names the cards there are; UnsupportedError says what the card lacks.
    """
    if name == "auto":
        usable = [card for card in found if not card.lacks]
        if not usable:
            told = "; ".join(f"{card.name}: {card.lacks}" for card in found)
            raise UnsupportedError("a network card for copies", told or NONE_HERE)
        return min(usable, key=lambda card: _distance(card, node, place))
    for card in found:
        if card.name == name:
            if card.lacks:
                raise UnsupportedError(f"network card {name}", f"more: {card.lacks}")
            return card
    there = ", ".join(card.name for card in found)
    raise InvalidError(
        "nic",
        f"{name!r} is no RDMA device of this machine",
        fix=f'there are {there}, or "auto"' if there else f"there is none; it takes {NONE_HERE}",
    )
