# SPDX-License-Identifier: MIT
"""The kernel plane: the module behind /dev/dmaplane, reached by ioctl, mmap and poll.

Who owns what. The plane owns the descriptor and every mapping it gave, and remembers how
long each is: munmap(2) is content with any address, so what was never mapped here has to
be refused here. Ending the plane takes the mappings back first, because each of them holds
the open file, and closing the last descriptor of that file is what returns everything.

A forked child inherits the descriptor, and with it could keep all of the parent's alive.
It lets go of it at once; as with the embedded plane, a child opens a plane of its own.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import grp
import mmap
import os
import pwd
import stat
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from dmaplane import _library
from dmaplane._errors import UnsupportedError, error_from
from dmaplane._plane import Plane

if TYPE_CHECKING:
    from collections.abc import Callable

DEVICE_PATH: Final = "/dev/dmaplane"
GROUP: Final = "dmaplane"
_POLLIN: Final = 0x001
_MAP_FAILED: Final = ctypes.c_void_p(-1).value


class _PollFd(ctypes.Structure):
    """struct pollfd."""

    _fields_ = (("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short))


class _Timespec(ctypes.Structure):
    """struct timespec of a 64-bit machine, the only ones there is a module for."""

    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Calls(NamedTuple):
    """System calls that let go of the interpreter lock and keep their errno."""

    ioctl: Callable[..., int]
    mmap: Callable[..., int | None]
    munmap: Callable[..., int]
    ppoll: Callable[..., int]


@functools.lru_cache(maxsize=1)
def _calls() -> _Calls:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int),
        *(ctypes.c_int, ctypes.c_int, ctypes.c_uint64),
    )
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    libc.ppoll.argtypes = (ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_void_p)
    return _Calls(libc.ioctl, libc.mmap, libc.munmap, libc.ppoll)


class KernelPlane(Plane):
    """A plane served by the kernel module."""

    name = "kernel"

    def __init__(self, reason: str) -> None:
        self._library = _library.load("the rings of the kernel plane")
        self._calls = _calls()
        self._ioctl = self._calls.ioctl
        self._mapped: dict[int, int] = {}
        self._fd = _open()
        super().__init__(reason)

    def _command(self, number: int, struct: ctypes.Structure | ctypes.Array[ctypes.c_char]) -> int:
        if self._ioctl(self._fd, number, ctypes.addressof(struct)) >= 0:
            return 0
        return self._refused(ctypes.get_errno())

    def _refused(self, number: int) -> int:
        """-@number; what a forked child gets for the descriptor it no longer has is EPERM."""
        return -errno.EPERM if number == errno.EBADF and self._fd < 0 else -number

    def _map(self, length_bytes: int, protection: int, map_offset: int) -> int:
        address = self._calls.mmap(
            None, length_bytes, protection, mmap.MAP_SHARED, self._fd, map_offset
        )
        if address is None or address == _MAP_FAILED:
            return self._refused(ctypes.get_errno())
        self._mapped[address] = length_bytes
        return address

    def _unmap(self, address: int, length_bytes: int) -> int:
        length = self._mapped.pop(address, None)
        if length is None:
            return -errno.EINVAL
        return -ctypes.get_errno() if self._calls.munmap(address, length) else 0

    def _poll(self, deadline_ns: int) -> int:
        asked = _PollFd(self._fd, _POLLIN, 0)
        left = None
        if deadline_ns:
            nanoseconds = max(0, deadline_ns - time.monotonic_ns())
            left = ctypes.byref(_Timespec(*divmod(nanoseconds, 1_000_000_000)))
        found = self._calls.ppoll(ctypes.byref(asked), 1, left, None)
        if found < 0:
            return -ctypes.get_errno()
        return found if not found or asked.revents & _POLLIN else -errno.EIO

    def _end(self) -> int:
        while self._mapped:
            self._calls.munmap(*self._mapped.popitem())
        fd, self._fd = self._fd, -1
        try:
            os.close(fd)
        except OSError as reason:
            return -(reason.errno or errno.EIO)
        return 0

    def _leave_to_parent(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _attach(self, client: _library.Client) -> _library.Library:
        client.plane = None
        client.fd = self._fd
        return self._library


def _open() -> int:
    """A descriptor of the device; UnsupportedError says what is missing and how to get it."""
    try:
        return os.open(DEVICE_PATH, os.O_RDWR | os.O_CLOEXEC)
    except OSError as reason:
        needs = _needs(reason.errno or 0)
        if needs is None:
            raise error_from(reason.errno or errno.EIO, "open", DEVICE_PATH) from reason
        raise UnsupportedError("the kernel plane", needs, errno=reason.errno) from reason


def _needs(number: int) -> str | None:
    """What would make open() work; None if its errno has nothing to do with the module."""
    if number in (errno.ENOENT, errno.ENOTDIR):
        return (
            f"{DEVICE_PATH}, and there is none: load the module (`modprobe dmaplane`, as root) "
            'or take dmaplane.open(plane="embedded"), which needs nothing'
        )
    if number in (errno.ENXIO, errno.ENODEV):
        return f"the module behind {DEVICE_PATH}: load it (`modprobe dmaplane`, as root)"
    if number == errno.EPERM:
        return f"a container that was given the device (`--device {DEVICE_PATH}`)"
    if number == errno.EACCES:
        group = _group()
        if group is None:
            return (
                f"the right to open {DEVICE_PATH}, which no group but root's has: install the "
                f"udev rule that gives it to group {GROUP} (`make install-module`)"
            )
        return (
            f"the right to open {DEVICE_PATH}: add yourself to group {group} "
            f"(`sudo usermod -aG {group} {_user()}`, then log in again)"
        )
    return None


def _group() -> str | None:
    """The group that may open the device, None if that is no ordinary one."""
    try:
        found = os.stat(DEVICE_PATH)
        readers = found.st_mode & stat.S_IRGRP and found.st_gid
        return grp.getgrgid(found.st_gid).gr_name if readers else None
    except (OSError, KeyError):
        return None


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a user without a name
        return str(os.getuid())
