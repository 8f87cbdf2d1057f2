# SPDX-License-Identifier: MIT
"""Counters of other processes: the boards that embedded planes publish, the module's own lists.

An embedded plane keeps its counters in a memfd of a known name. Whoever may look at a
process finds it under /proc/PID/fd and reads it there. The file belongs to the
process alone, so it is gone with it, however it ended, and a reader leaves
nothing behind either. It is read with pread and not mapped: a file that a
stranger truncates cannot then kill the reader.

The kernel module lists its planes in debugfs, which is root's; without that right none of
them is found, and nobody is told of an error.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import time
from typing import TYPE_CHECKING, Final

from dmaplane import _abi
from dmaplane._statistics import Statistics

if TYPE_CHECKING:
    from collections.abc import Iterator

KERNEL_PLANES: Final = "/sys/kernel/debug/dmaplane/planes"
_LINK: Final = "/memfd:dmaplane-board (deleted)"
_MAGIC: Final = 0x42504D44
_VERSION: Final = 1
_COUNTERS: Final = tuple(field.name for field in dataclasses.fields(Statistics))
_NAMES_THERE: Final = {"bytes": "moved", "checksum_bytes": "checksummed", "buffer_bytes": "bytes"}
"""Counters that the module's list calls by another name."""


class _Board(ctypes.Structure):
    """struct dmp_board of libdmaplane.h."""

    _fields_ = (
        ("magic", ctypes.c_uint32),
        ("version", ctypes.c_uint32),
        ("incarnation", ctypes.c_uint64),
        ("opened_ns", ctypes.c_uint64),
        ("statistics", _abi.Statistics),
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """Counters of one plane at one moment."""

    plane: str
    pid: int
    command: str
    incarnation: int
    age_s: float | None
    """None where nobody says."""
    taken_s: float
    """time.monotonic()"""
    statistics: Statistics


def samples(*, everyone: bool = False) -> list[Sample]:
    """Every plane open now in processes of this user; with @everyone, of all we may read."""
    user = os.geteuid()
    found: dict[int, Sample] = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            if everyone or entry.stat().st_uid == user:
                for sample in _of_process(int(entry.name)):
                    found.setdefault(sample.incarnation, sample)
        except OSError:
            continue  # The process ended while we looked, or is not ours to look at.
    for sample in _of_module(None if everyone else user):
        found.setdefault(sample.incarnation, sample)
    return sorted(found.values(), key=lambda sample: (sample.pid, sample.incarnation))


def _of_process(pid: int) -> Iterator[Sample]:
    folder = f"/proc/{pid}/fd"
    for name in os.listdir(folder):
        try:
            if os.readlink(f"{folder}/{name}") != _LINK:
                continue
            fd = os.open(f"{folder}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            content = os.pread(fd, ctypes.sizeof(_Board), 0)
        finally:
            os.close(fd)
        if len(content) < ctypes.sizeof(_Board):
            continue
        board = _Board.from_buffer_copy(content)
        if board.magic != _MAGIC or board.version != _VERSION:
            continue
        if _started_after(pid, board.opened_ns):
            continue
        now = time.monotonic()
        yield Sample(
            plane="embedded",
            pid=pid,
            command=_command(pid),
            incarnation=board.incarnation,
            age_s=max(0.0, now - board.opened_ns / 1e9),
            taken_s=now,
            statistics=Statistics(
                **{counter: getattr(board.statistics, counter) for counter in _COUNTERS}
            ),
        )


def _of_module(user: int | None) -> Iterator[Sample]:
    """The planes of the kernel module; with @user, those that processes of this user opened."""
    try:
        with open(KERNEL_PLANES, encoding="ascii") as file:
            lines = file.read().splitlines()
    except OSError:
        return
    now = time.monotonic()
    for line in lines:
        fields = dict(word.partition("=")[::2] for word in line.split())
        pid = int(fields["owner"])
        try:
            if user is not None and os.stat(f"/proc/{pid}").st_uid != user:
                continue
            command = _command(pid)
        except OSError:
            if user is not None:
                continue
            command = "?"  # who opened it has handed it on and ended
        yield Sample(
            plane="kernel",
            pid=pid,
            command=command,
            incarnation=int(fields["plane"], 16),
            age_s=None,
            taken_s=now,
            statistics=Statistics(
                **{name: int(fields.get(_NAMES_THERE.get(name, name), 0)) for name in _COUNTERS}
            ),
        )


def _started_after(pid: int, opened_ns: int) -> bool:
    """A process younger than the plane has the board by fork only; the plane is its parent's."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        # The name in brackets may hold anything, brackets and spaces included.
        ticks = int(file.read().rpartition(")")[2].split()[19])
    started = ticks / os.sysconf("SC_CLK_TCK")
    asleep = time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
    return started > opened_ns / 1e9 + asleep


def _command(pid: int) -> str:
    """The command line in one line, the program without its folder."""
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        words = [word.decode(errors="replace") for word in file.read().split(b"\0") if word]
    if not words:
        return "?"
    return " ".join(" ".join([os.path.basename(words[0]), *words[1:]]).split())


@dataclasses.dataclass(frozen=True, slots=True)
class Rates:
    """What grew between two samples, per second."""

    submissions_per_s: float
    completions_per_s: float
    bytes_per_s: float
    errors_per_s: float
    wakeups_per_s: float
    stalls_per_s: float


def rates(before: Sample | None, after: Sample) -> Rates:
    """Rates since @before; all 0 if there is none."""
    if before is None or after.taken_s <= before.taken_s:
        return Rates(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    elapsed = after.taken_s - before.taken_s
    return Rates(
        **{
            field.name: max(
                0,
                getattr(after.statistics, field.name.removesuffix("_per_s"))
                - getattr(before.statistics, field.name.removesuffix("_per_s")),
            )
            / elapsed
            for field in dataclasses.fields(Rates)
        }
    )
