# SPDX-License-Identifier: MIT
"""The RDMA device that `bench rdma` and `bench stream` measure, and what it counts.

Read from /sys and the kernel's log only.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import pathlib
from typing import TYPE_CHECKING, Final, NamedTuple

from dmaplane._errors import DmaplaneError

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = pathlib.Path("/sys/class/infiniband")
SOFT_ROCE: Final = "modprobe rdma_rxe; rdma link add rxe0 type rxe netdev NETDEV"
RNR_COUNTERS: Final = (
    "rcvd_rnr_err",
    "send_rnr_err",
    "retry_rnr_exceeded_err",
    "rnr_nak_retry_err",
    "out_of_buffer",
)
"""Receiver not ready: sent, received or given up, as drivers call it."""
_OVERFLOW_WORDS: Final = ("cq", "queue full")
"""What a driver says in the kernel's log of a completion queue that had no room."""


class MissingDeviceError(DmaplaneError):
    """There is none to measure; the text says how to have one."""


class Device(NamedTuple):
    """A port of a device, and an address of this machine that leads to it."""

    name: str
    port: int
    gid_index: int
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address

    @property
    def address(self) -> str:
        """To listen on, any port."""
        return f"[{self.ip}]:0" if self.ip.version == 6 else f"{self.ip}:0"

    @property
    def folder(self) -> pathlib.Path:
        """What /sys says of the port."""
        return ROOT / self.name / "ports" / str(self.port)


def _read(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _all(root: pathlib.Path) -> Iterator[Device]:
    """Every GID of an active port that an IP address leads to."""
    for port in sorted(root.glob("*/ports/*")):
        if "ACTIVE" not in _read(port / "state"):
            continue
        for gid in sorted((port / "gids").glob("*"), key=lambda path: int(path.name)):
            kind = _read(port / "gid_attrs/types" / gid.name)
            try:
                number = ipaddress.IPv6Address(_read(gid))
            except ValueError:
                continue
            if kind != "RoCE v2" or not int(number) or number.is_link_local:
                continue
            ip = number.ipv4_mapped or number
            yield Device(port.parts[-3], int(port.name), int(gid.name), ip)


def find(address: str | None = None, root: pathlib.Path = ROOT) -> Device:
    """The first device with a usable GID, or the one that has @address.

    MissingDeviceError says what to do.
    """
    found = sorted(_all(root), key=lambda device: device.ip.version)
    if address is not None:
        found = [device for device in found if str(device.ip) == address]
    if found:
        return found[0]
    if address is not None:
        raise MissingDeviceError(f"no RDMA device has a RoCE v2 GID for the address {address}")
    raise MissingDeviceError(
        f"no RDMA device has a GID that an IP address leads to; to have Soft-RoCE: {SOFT_ROCE}"
    )


def rnr_naks(device: Device) -> dict[str, int]:
    """The counters of the device that count a receiver that was not ready."""
    folder = device.folder / "hw_counters"
    said = {name: _read(folder / name) for name in RNR_COUNTERS}
    return {name: int(value) for name, value in said.items() if value.isdigit()}


class Log:
    """The kernel's log from here on; `readable` is False without the right."""

    def __init__(self) -> None:
        self._fd = -1
        with contextlib.suppress(OSError):
            self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._fd, 0, os.SEEK_END)

    @property
    def readable(self) -> bool:
        """May this process read it?"""
        return self._fd >= 0

    def overflows(self) -> int:
        """Lines since the last call that tell of a completion queue that overflowed."""
        count = 0
        while self.readable:
            try:
                line = os.read(self._fd, 8192).decode(errors="replace").lower()
            except BlockingIOError:
                break
            except OSError:
                continue  # lines were lost: the next read goes on behind them
            count += all(word in line for word in _OVERFLOW_WORDS)
        return count

    def close(self) -> None:
        """Lets go of it."""
        if self.readable:
            os.close(self._fd)
            self._fd = -1
