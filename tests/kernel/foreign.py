# SPDX-License-Identifier: MIT
"""dma-bufs of others, and others that take ours: vgem, udmabuf, the system heap, a stand-in."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

SYNC_READ: Final = 1
SYNC_WRITE: Final = 2
SYNC_END: Final = 4
_SYNC: Final = 0x40086200


def sync(fd: int, flags: int) -> None:
    """DMA_BUF_IOCTL_SYNC."""
    fcntl.ioctl(fd, _SYNC, struct.pack("Q", flags))


@contextlib.contextmanager
def mapped(
    fd: int, length_bytes: int, *, offset: int = 0, write: bool = True
) -> Iterator[mmap.mmap]:
    """A dma-buf in this process."""
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if write else 0)
    with mmap.mmap(fd, length_bytes, mmap.MAP_SHARED, protection, offset=offset) as area:
        yield area


def _ioctl(fd: int, number: int, form: str, *values: int) -> tuple[int, ...]:
    packed = bytearray(struct.pack(form, *values))
    fcntl.ioctl(fd, number, packed, True)
    return struct.unpack(form, packed)


def _iowr(kind: str, number: int, form: str) -> int:
    return 3 << 30 | struct.calcsize(form) << 16 | ord(kind) << 8 | number


class _Version(ctypes.Structure):
    """struct drm_version."""

    _fields_ = (
        ("numbers", ctypes.c_int * 3),
        ("name_bytes", ctypes.c_size_t),
        ("name", ctypes.c_char_p),
        ("date_bytes", ctypes.c_size_t),
        ("date", ctypes.c_char_p),
        ("description_bytes", ctypes.c_size_t),
        ("description", ctypes.c_char_p),
    )


class Vgem:
    """The virtual GPU of the kernel: a driver that exports and imports, and is not ours."""

    _DUMB: Final = "IIIIIIQ"
    _PRIME: Final = "IIi"

    def __init__(self) -> None:
        subprocess.run(["modprobe", "vgem"], check=True)
        self._fd = self._open()

    @staticmethod
    def _open() -> int:
        for card in sorted(Path("/dev/dri").glob("card*")):
            fd = os.open(card, os.O_RDWR | os.O_CLOEXEC)
            name = ctypes.create_string_buffer(16)
            version = _Version(name_bytes=15, name=ctypes.cast(name, ctypes.c_char_p))
            packed = bytearray(bytes(version))
            fcntl.ioctl(fd, 3 << 30 | len(packed) << 16 | ord("d") << 8, packed, True)
            if name.value == b"vgem":
                return fd
            os.close(fd)
        raise FileNotFoundError("vgem is loaded and has no card")

    def create(self, length_bytes: int) -> int:
        """An fd of a dma-buf of vgem's own memory."""
        pages = -(-length_bytes // mmap.PAGESIZE)
        made = _ioctl(
            self._fd,
            _iowr("d", 0xB2, self._DUMB),
            self._DUMB,
            *(pages, mmap.PAGESIZE, 8, 0, 0, 0, 0),
        )
        try:
            return self.export(made[4])
        finally:
            self.close_handle(made[4])

    def export(self, handle: int) -> int:
        """PRIME_HANDLE_TO_FD."""
        flags = os.O_RDWR | os.O_CLOEXEC
        number = _iowr("d", 0x2D, self._PRIME)
        return _ioctl(self._fd, number, self._PRIME, handle, flags, -1)[2]

    def take(self, fd: int) -> int:
        """PRIME_FD_TO_HANDLE: attaches and maps somebody's dma-buf."""
        return _ioctl(self._fd, _iowr("d", 0x2E, self._PRIME), self._PRIME, 0, 0, fd)[0]

    def close_handle(self, handle: int) -> None:
        """GEM_CLOSE."""
        fcntl.ioctl(self._fd, 1 << 30 | 8 << 16 | ord("d") << 8 | 9, struct.pack("II", handle, 0))

    def close(self) -> None:
        os.close(self._fd)


def udmabuf(length_bytes: int) -> int:
    """An fd of a dma-buf made of a memfd."""
    if not Path("/dev/udmabuf").exists():
        pytest.skip("this kernel has no udmabuf")
    memory = os.memfd_create("udmabuf", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    device = os.open("/dev/udmabuf", os.O_RDWR | os.O_CLOEXEC)
    try:
        os.ftruncate(memory, length_bytes)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        asked = bytearray(struct.pack("IIQQ", memory, 1, 0, length_bytes))
        number = 1 << 30 | len(asked) << 16 | ord("u") << 8 | 0x42
        fd: int = fcntl.ioctl(device, number, asked, True)
        return fd
    finally:
        os.close(device)
        os.close(memory)


def heap(length_bytes: int) -> int:
    """An fd of a dma-buf of the system heap."""
    if not Path("/dev/dma_heap/system").exists():
        pytest.skip("this kernel has no system heap")
    form = "QIIQ"
    device = os.open("/dev/dma_heap/system", os.O_RDWR | os.O_CLOEXEC)
    try:
        flags = os.O_RDWR | os.O_CLOEXEC
        return _ioctl(device, _iowr("H", 0, form), form, length_bytes, 0, flags, 0)[1]
    finally:
        os.close(device)


class Look(ctypes.Structure):
    """struct exporter_look."""

    _fields_ = (
        ("attached", ctypes.c_uint32),
        ("mapped", ctypes.c_uint32),
        ("pinned", ctypes.c_uint32),
        ("addressed", ctypes.c_uint32),
        ("changed_bytes", ctypes.c_uint64),
    )

    def counts(self) -> tuple[int, int, int, int]:
        return self.attached, self.mapped, self.pinned, self.addressed


class Exporter:
    """A dma-buf that can be moved: an open file of standin/dmabuf_exporter.c."""

    BARE: Final = 1
    RELUCTANT: Final = 2
    _CREATE: Final = "QIi"

    def __init__(self) -> None:
        self._fd = os.open("/dev/dmabuf_exporter", os.O_RDWR | os.O_CLOEXEC)

    def create(self, length_bytes: int, flags: int = 0) -> int:
        """Its fd."""
        number = _iowr("S", 0, self._CREATE)
        return _ioctl(self._fd, number, self._CREATE, length_bytes, flags, -1)[2]

    def move(self) -> None:
        """Other pages; returns when every importer was told and the old ones are marked."""
        fcntl.ioctl(self._fd, ord("S") << 8 | 1)

    def look(self) -> Look:
        packed = bytearray(ctypes.sizeof(Look))
        fcntl.ioctl(self._fd, 2 << 30 | len(packed) << 16 | ord("S") << 8 | 2, packed, True)
        return Look.from_buffer_copy(packed)

    def __enter__(self) -> Exporter:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


class Importer:
    """A device that takes dma-bufs: an open file of standin/dmabuf_importer.c.

    What can be refused answers 0, or the errno that the exporter gave.
    """

    BIDIRECTIONAL: Final = 0
    TO_DEVICE: Final = 1
    FROM_DEVICE: Final = 2

    def __init__(self) -> None:
        self._fd = os.open("/dev/dmabuf_importer", os.O_RDWR | os.O_CLOEXEC)

    def attach(self, fd: int) -> int:
        """As an importer that hears of moves."""
        return self._try(3, fd)

    def attach_static(self, fd: int) -> int:
        """As one that does not."""
        return self._try(6, fd)

    def attach_slow(self, fd: int) -> int:
        """As one whose device needs a while to stop, and that leaves a fence until then."""
        return self._try(7, fd)

    def map(self, direction: int) -> int:
        """For one of the directions."""
        return self._try(4, direction)

    def detach(self) -> None:
        assert self._try(5, 0) == 0

    def look(self) -> tuple[int, int]:
        """How many moves it was told of, and how many devices have not stopped yet."""
        packed = bytearray(8)
        fcntl.ioctl(self._fd, 2 << 30 | len(packed) << 16 | ord("S") << 8 | 2, packed, True)
        notified, stopping = struct.unpack("II", packed)
        return notified, stopping

    def _try(self, number: int, argument: int) -> int:
        try:
            fcntl.ioctl(self._fd, ord("S") << 8 | number, argument)
        except OSError as reason:
            return reason.errno or errno.EIO
        return 0

    def __enter__(self) -> Importer:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
