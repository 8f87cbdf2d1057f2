# SPDX-License-Identifier: MIT
"""QEMU's shared memory device, for tests of peer buffers: a BAR whose bytes the host has too."""

from __future__ import annotations

import os
import re
from pathlib import Path

PCI = Path("/sys/bus/pci")
VENDOR, DEVICE = "0x1af4", "0x1110"
BAR = 2
BAR_BYTES = 64 << 20
MEMORY_TYPES = Path("/sys/kernel/debug/x86/pat_memtype_list")


class Ivshmem:
    """The device at its address, and @host, the file behind its memory, as the host sees it."""

    def __init__(self, host: Path) -> None:
        self.host = host
        self.address = next(
            folder.name
            for folder in sorted((PCI / "devices").iterdir())
            if (folder / "vendor").read_text().strip() == VENDOR
            and (folder / "device").read_text().strip() == DEVICE
        )
        self.folder = PCI / "devices" / self.address

    @property
    def present(self) -> bool:
        return self.folder.exists()

    @property
    def start(self) -> int:
        """Where the memory is in the address space of the machine."""
        return int((self.folder / "resource").read_text().splitlines()[BAR].split()[0], 16)

    @property
    def users(self) -> int:
        """How many have enabled the device."""
        return int((self.folder / "enable").read_text())

    def remove(self) -> None:
        """Takes the device from the machine; returns when it is gone."""
        (self.folder / "remove").write_text("1")
        assert not self.present

    def rescan(self) -> None:
        """It comes back."""
        (PCI / "rescan").write_text("1")
        assert self.present

    def host_read(self, offset: int, length_bytes: int) -> bytes:
        with self.host.open("rb", buffering=0) as file:
            return os.pread(file.fileno(), length_bytes, offset)

    def host_write(self, offset: int, data: bytes) -> None:
        with self.host.open("r+b", buffering=0) as file:
            assert os.pwrite(file.fileno(), data, offset) == len(data)

    def caching(self, offset: int, length_bytes: int) -> str:
        """How the kernel has mapped a range of the memory: "uncached-minus", "write-combining"."""
        first, end = self.start + offset, self.start + offset + length_bytes
        text = MEMORY_TYPES.read_text()
        found = re.findall(r"PAT: \[mem 0x([0-9a-f]+)-0x([0-9a-f]+)\] (\S+)", text)
        types = {kind for low, high, kind in found if (int(low, 16), int(high, 16)) == (first, end)}
        assert len(types) == 1, text
        return types.pop()
