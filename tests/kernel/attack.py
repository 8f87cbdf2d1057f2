# SPDX-License-Identifier: MIT
"""Running the programs that attack the module (tests/kernel/*.c), and a device for nobody."""

from __future__ import annotations

import ctypes
import fcntl
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DEVICE = Path("/dev/dmaplane")
PARAMETERS = Path("/sys/module/dmaplane/parameters")
NOBODY = 65534
# System calls of x86-64. A hundred times insmod would mostly measure fork and exec.
DELETE_MODULE = 176
FINIT_MODULE = 313
IS_DEBUG = Path("/sys/kernel/debug/failslab").is_dir()
# The debug kernel under emulation does a tenth of the work in the same time.
SLOWNESS = 10 if IS_DEBUG else 1
CHILD_S = 1100 if IS_DEBUG else 280
"""So long a child process of a test may take: less than pytest allows the test."""


def seed() -> int:
    """DMAPLANE_SEED replays a run; every program prints the seed it took."""
    return int(os.environ.get("DMAPLANE_SEED", time.time_ns() & 0xFFFFFFFF))


def run(path: Path, *words: object, status: int = 0, timeout_s: float = 1000) -> str:
    """Runs a program to its end; what it said is shown, and returned."""
    done = subprocess.run(
        [str(path), *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == status, f"{path.name} ended with {done.returncode}: {done.stdout}"
    return done.stdout


def ask(fd: int, command: int, request: ctypes.Structure) -> int:
    """One command on a bare fd: 0 or a negative errno."""
    try:
        return int(fcntl.ioctl(fd, command, request))
    except OSError as refused:
        return -(refused.errno or 0)


def delete_module(name: str) -> int:
    """What the kernel answers who wants it gone at once: 0 or an errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(DELETE_MODULE, name.encode(), os.O_NONBLOCK) == 0:
        return 0
    return ctypes.get_errno()


def load_module(path: Path) -> int:
    """Loads a module whose dependencies are there: 0 or an errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("rb") as file:
        if libc.syscall(FINIT_MODULE, file.fileno(), b"", 0) == 0:
            return 0
    return ctypes.get_errno()


def try_open_as_nobody(groups: list[int]) -> int:
    """What open() answers a user who is nobody and in these groups: 0 or an errno."""
    child = os.fork()
    if child == 0:
        status = 255
        try:
            os.setgroups(groups)
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            os.close(os.open(DEVICE, os.O_RDWR))
            status = 0
        except OSError as refused:
            status = refused.errno or 255
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def modprobe(*names: str) -> None:
    """Other drivers to play with, where the kernel has them."""
    for name in names:
        subprocess.run(["modprobe", "-q", name], check=False)


@contextmanager
def open_to_group(group: int) -> Iterator[None]:
    """What the udev rule does on a real machine: a group may open the device."""
    before = DEVICE.stat()
    os.chown(DEVICE, before.st_uid, group)
    try:
        yield
    finally:
        os.chown(DEVICE, before.st_uid, before.st_gid)


@contextmanager
def parameter(name: str, value: int) -> Iterator[None]:
    path = PARAMETERS / name
    before = path.read_text()
    path.write_text(str(value))
    try:
        yield
    finally:
        path.write_text(before)
