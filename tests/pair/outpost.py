# SPDX-License-Identifier: MIT
"""Planes of this machine for cases that run in another one: far_plane.py is there.

A request is a head, four numbers and maybe bytes; its answer is a number and maybe bytes.
Each connection is served by a thread, one request after the other, so who has a command
that waits and something else to do meanwhile makes another connection. A plane belongs to
the connection that opened it, and ends with it: of a case that died nothing stays.

Only memory that a plane mapped is read or written, and only in this machine's address
space: the wire of the pair has nobody else on it.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import errno
import itertools
import socket
import struct
import sys
import threading
import time
from typing import Any, Final

import numpy as np

import dmaplane

REQUEST: Final = struct.Struct("<II4Q")
"""What, how many bytes follow, and its four numbers."""

ANSWER: Final = struct.Struct("<qQ")
"""The answer, and how many bytes follow."""

SMALL: Final = 1 << 15


class Ask(enum.IntEnum):
    """What is asked for; in brackets its numbers."""

    OPEN = 1
    """A plane of the kind that the bytes name; answers its number."""
    JOIN = 2
    """[plane] What else is asked for on this connection is about that plane."""
    CLOCK = 3
    """The monotonic clock, in nanoseconds."""
    COMMAND = 4
    """[number] Bytes: its struct, which comes back."""
    MAP = 5
    """[length, protection, offset] Answers the address."""
    UNMAP = 6
    """[address, length]"""
    READ = 7
    """[address, count, step] Answers so many bytes, each a step behind the last."""
    WRITE = 8
    """[address, count, step] As many bytes, or one that goes everywhere."""
    CLOSE = 9
    """The plane ends."""


def receive(end: socket.socket, length_bytes: int) -> bytearray:
    """So many bytes; ConnectionError if the other end leaves before."""
    content = bytearray(length_bytes)
    rest = memoryview(content)
    while rest:
        count = end.recv_into(rest)
        if not count:
            raise ConnectionResetError("the other end of the line has gone")
        rest = rest[count:]
    return content


def say(end: socket.socket, head: bytes, content: Any) -> None:
    """Both; in one piece if that is cheap."""
    if len(content) < SMALL:
        end.sendall(head + content)
    else:
        end.sendall(head)
        end.sendall(content)


class Post:
    """A plane, and where its mappings are."""

    def __init__(self, kind: str) -> None:
        self.plane = dmaplane.open(plane=kind)
        self._mapped: dict[int, int] = {}

    def command(self, number: int, content: bytearray) -> tuple[int, Any]:
        room = (ctypes.c_char * len(content)).from_buffer(content)
        return self.plane.command(number, room), content

    def map(self, length_bytes: int, protection: int, offset: int) -> int:
        address = self.plane._map(length_bytes, protection, offset)
        if address > 0:
            self._mapped[address] = length_bytes
        return address

    def unmap(self, address: int, length_bytes: int) -> int:
        self._mapped.pop(address, None)
        return self.plane._unmap(address, length_bytes)

    def memory(self, address: int, count: int, step: int) -> np.ndarray:
        """Bytes of a mapping."""
        end = address + (count - 1) * step + 1
        known = any(first <= address and end <= first + n for first, n in self._mapped.items())
        assert known, f"{count} bytes at {address:#x} are not mapped"
        area = (ctypes.c_ubyte * (end - address)).from_address(address)
        return np.frombuffer(memoryview(area), dtype=np.uint8)[::step]


class Outpost:
    """The planes there are, and who asks."""

    def __init__(self) -> None:
        self._posts: dict[int, Post] = {}
        self._numbers = itertools.count(1)

    def serve(self, door: socket.socket) -> None:
        """For ever."""
        while True:
            end, _ = door.accept()
            threading.Thread(target=self._converse, args=(end,), daemon=True).start()

    def _converse(self, end: socket.socket) -> None:
        """A connection: which plane it is about, and all that is asked of that plane."""
        opened = 0
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            with end, contextlib.suppress(ConnectionError):
                head, content = self._next(end)
                number = head[2]
                if head[0] == Ask.OPEN:
                    opened = number = next(self._numbers)
                    self._posts[number] = Post(content.decode())
                post = self._posts[number]
                say(end, ANSWER.pack(number, 0), b"")
                while True:
                    answer, content = self._do(post, *self._next(end))
                    say(end, ANSWER.pack(answer, len(content)), content)
        finally:
            if opened:
                self._posts.pop(opened).plane.close()

    def _next(self, end: socket.socket) -> tuple[tuple[int, ...], bytearray]:
        head = REQUEST.unpack(receive(end, REQUEST.size))
        return head, receive(end, head[1])

    def _do(self, post: Post, head: tuple[int, ...], content: bytearray) -> tuple[int, Any]:
        what, _, *numbers = head
        if what == Ask.COMMAND:
            return post.command(numbers[0], content)
        if what == Ask.READ:
            return 0, post.memory(*numbers[:3]).tobytes()
        if what == Ask.WRITE:
            post.memory(*numbers[:3])[:] = np.frombuffer(content, np.uint8)
            return 0, b""
        if what == Ask.CLOCK:
            return time.monotonic_ns(), b""
        if what == Ask.MAP:
            return post.map(*numbers[:3]), b""
        if what == Ask.UNMAP:
            return post.unmap(*numbers[:2]), b""
        if what == Ask.CLOSE:
            post.plane.close()
            return 0, b""
        return -errno.ENOTTY, b""


def serve(address: str) -> None:
    """Says at which port of @address it is, and serves."""
    with socket.create_server((address, 0), backlog=64) as door:
        print(door.getsockname()[1], flush=True)
        Outpost().serve(door)


if __name__ == "__main__":
    serve(sys.argv[1])
