# SPDX-License-Identifier: MIT
"""A plane of another machine, for a case that takes it for one of its own; outpost.py has it.

A case knows a plane by its commands and by the memory it maps. Commands go there and their
answers come back; of the memory, see far_memory.py. Times are all that has to be translated:
a deadline is a time on the clock of the machine whose plane it is for.

Each request that is under way has a connection to itself, since a command may wait; those
that are free are kept for the next one. None is left when the plane is closed.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import socket
import time
from collections.abc import Iterator
from typing import Any, Final

from far_memory import AT_ONCE, FarSight
from outpost import ANSWER, REQUEST, Ask, receive, say

from dmaplane._errors import UnsupportedError
from dmaplane._library import Client, Library
from dmaplane._plane import Plane

Request = tuple[Ask, tuple[int, ...], bytes]
CLOCK_ROUNDS: Final = 4


class Line:
    """A connection to an outpost."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._end = socket.create_connection(address)
        self._end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask_all(self, *requests: Request) -> list[tuple[int, bytearray]]:
        """Requests that need not wait for each other's answers; they are served in order."""
        for what, numbers, content in requests:
            four = (*numbers, 0, 0, 0, 0)[:4]
            say(self._end, REQUEST.pack(what, len(content), *four), content)
        return [self._hear() for _ in requests]

    def _hear(self) -> tuple[int, bytearray]:
        answer, length = ANSWER.unpack(receive(self._end, ANSWER.size))
        return answer, receive(self._end, length)

    def close(self) -> None:
        self._end.close()


class FarPlane(Plane):
    """A plane of @kind at the outpost at @address."""

    name = "far"

    def __init__(self, address: tuple[str, int], kind: str) -> None:
        self.sight = FarSight(self)
        self._address = address
        first = Line(address)
        self._lines, self._idle = [first], [first]
        self._number, _ = first.ask_all((Ask.OPEN, (), kind.encode()))[0]
        self.ahead_ns = min(self._clock() for _ in range(CLOCK_ROUNDS))
        super().__init__(f"the {kind} plane of another machine")

    def _clock(self) -> int:
        """How far its clock is ahead of ours; never less, so that no deadline comes early."""
        began = time.monotonic_ns()
        return self.ask(Ask.CLOCK)[0] - began

    @contextlib.contextmanager
    def _line(self) -> Iterator[Line]:
        try:
            line = self._idle.pop()
        except IndexError:
            line = Line(self._address)
            line.ask_all((Ask.JOIN, (self._number,), b""))
            self._lines.append(line)
        yield line
        self._idle.append(line)  # one on which something went wrong is not used again

    def ask_all(self, *requests: Request) -> list[tuple[int, bytearray]]:
        """See Line."""
        with self._line() as line:
            return line.ask_all(*requests)

    def ask(self, what: Ask, *numbers: int, content: bytes = b"") -> tuple[int, bytearray]:
        """One request, and its answer."""
        return self.ask_all((what, numbers, content))[0]

    def _command(self, number: int, struct: ctypes.Structure | ctypes.Array[ctypes.c_char]) -> int:
        sent: Any = type(struct).from_buffer_copy(struct)
        given = getattr(struct, "deadline_ns", 0)
        if given > AT_ONCE:
            sent.deadline_ns = given + self.ahead_ns
        answer, content = self.ask(Ask.COMMAND, number, content=bytes(sent))
        ctypes.memmove(ctypes.addressof(struct), bytes(content), len(content))
        if given > AT_ONCE:
            struct.deadline_ns = given  # type: ignore[union-attr]
        return answer

    def _map(self, length_bytes: int, protection: int, map_offset: int) -> int:
        return self.ask(Ask.MAP, length_bytes, protection, map_offset)[0]

    def _unmap(self, address: int, length_bytes: int) -> int:
        return self.ask(Ask.UNMAP, address, length_bytes)[0]

    def _poll(self, deadline_ns: int) -> int:
        return -errno.EOPNOTSUPP

    def _end(self) -> int:
        try:
            answer, _ = self.ask(Ask.CLOSE)
        except OSError:
            answer = 0  # a plane ends with its connection
        while self._lines:
            self._lines.pop().close()
        return answer

    def _attach(self, client: Client) -> Library:
        raise UnsupportedError("a channel of Python's", "rings in this machine; see FarRings")
