# SPDX-License-Identifier: MIT
"""The other process of a bench with endpoints: is connected to, written to, and killed.

It is told what to do in JSON, one line a request on stdin, and answers in JSON on stdout.
What takes part in a measurement is said twice: {"ready": true} before it begins, and the
outcome after it. It ends when stdin does.

Who owns what. A door is a channel, a listener on it and the endpoints it accepted; all
doors and the one buffer peers write into are this process's, until it ends.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import mmap
import os
import signal
import socket
import sys
import time
import zlib
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

import dmaplane
from dmaplane import _abi
from dmaplane._plane import deadline_of
from dmaplane.bench import _link, _loops, _roundtrip

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from dmaplane._channel import Channel
    from dmaplane._endpoint import Endpoint
    from dmaplane._listener import Listener
    from dmaplane._plane import Plane
    from dmaplane._region import RemoteRegion

PATIENCE_S: Final = 30.0
_PR_SET_PDEATHSIG: Final = 1


class Door:
    """A channel that a listener delivers to, and the endpoints accepted so far."""

    def __init__(self, plane: Plane, request: dict[str, Any]) -> None:
        self._plane = plane
        self.channel = _loops.RawChannel(plane, request["slots"], spin_us=request["spin_us"])
        self.window = request["window"]
        address, secret = request["address"].encode(), request["secret"].encode()
        listen = _abi.Listen(
            flags=_abi.REQUIRE_PATH,
            channel_id=self.channel.id,
            path=request["path"],
            backlog=128,
            secret_bytes=len(secret),
        )
        listen.address[: len(address)] = list(address)
        listen.secret[: len(secret)] = list(secret)
        plane.call("LISTEN", _abi.LISTEN, listen)
        self._listener: int = listen.listener_id
        self.address = bytes(listen.bound_address).rstrip(b"\0").decode()
        self.endpoints: list[int] = []

    def accept(self, count: int) -> None:
        """Lets @count peers in."""
        for _ in range(count):
            accept = _abi.Accept(
                listener_id=self._listener,
                channel_id=self.channel.id,
                window_slots=self.window,
                window_bytes=_link.WINDOW_BYTES,
                deadline_ns=deadline_of(PATIENCE_S),
            )
            self._plane.call("ACCEPT", _abi.ACCEPT, accept)
            self.endpoints.append(accept.endpoint_id)

    def close(self) -> None:
        """Ends all of it; what peers have in flight fails."""
        for endpoint in self.endpoints:
            self._plane.command(_abi.ENDPOINT_DESTROY, _link.destroy(endpoint))
        self._plane.call("LISTENER_DESTROY", _abi.LISTENER_DESTROY, _link.destroy(self._listener))
        self.channel.close()


class Seat(NamedTuple):
    """The same by the public API."""

    channel: Channel
    listener: Listener
    endpoint: Endpoint | None = None
    remote: RemoteRegion | None = None


class Far:
    """What this process does, a method a request; each gives its answer."""

    def __init__(self, say: Callable[[dict[str, Any]], None]) -> None:
        self._say = say
        self._plane: Plane | None = None
        self._doors: dict[int, Door] = {}
        self._seats: list[Seat] = []
        self._rows: npt.NDArray[np.void] = np.empty(0, dtype=_abi.SUBMISSION)
        self._listening: socket.socket | None = None
        self._connection: socket.socket | None = None

    def open(self, request: dict[str, Any]) -> dict[str, Any]:
        """The plane, the buffer that is written into, and the rows both sides know."""
        self._plane = dmaplane.open(request["plane"])
        self._buffer = self._plane.buffer(request["length_bytes"], kind=request["kind"])
        self._bytes = self._buffer.numpy()
        self._bytes[:] = 0
        self._export = self._buffer.export()
        if request["rows_fd"] >= 0:
            self._rows = np.frombuffer(mmap.mmap(request["rows_fd"], 0), dtype=_abi.SUBMISSION)
        key = _link.grant(self._plane, self._buffer.id, request["length_bytes"])
        return {"fd": self._export.fd, "key": key.hex()}

    def listen(self, request: dict[str, Any]) -> dict[str, Any]:
        """A door; its number and address."""
        door = Door(self._opened, request)
        number = len(self._doors)
        self._doors[number] = door
        return {"door": number, "address": door.address}

    def accept(self, request: dict[str, Any]) -> dict[str, Any]:
        """Lets peers in through a door."""
        self._doors[request["door"]].accept(request["count"])
        return {}

    def leave(self, request: dict[str, Any]) -> dict[str, Any]:
        """Closes a door."""
        self._doors[request["door"]].close()
        return {}

    def drain(self, request: dict[str, Any]) -> dict[str, Any]:
        """Takes immediates through a door, in C."""
        channel = self._doors[request["door"]].channel
        self._say({"ready": True})
        immediates, end_ns = channel.drain(request["count"], request["wait"])
        return {"immediates": immediates, "end_ns": end_ns}

    def pong(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answers each WRITE_IMM with one, in C."""
        door = self._doors[request["door"]]
        region = _link.imported(self._opened, door.endpoints[0], bytes.fromhex(request["key"]))
        row = _link.rows_over(
            door.endpoints[0], self._buffer.id, region, _link.PING_BYTES, np.zeros(1), np.zeros(1)
        )
        self._say({"ready": True})
        door.channel.pingpong(row, request["count"], first=False)
        self._opened.call("REGION_DESTROY", _abi.REGION_DESTROY, _link.destroy(region))
        return {}

    def echo(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answers each message with one, in C."""
        door = self._doors[request["door"]]
        rows = _link.message_rows(door.endpoints[0], self._buffer.id, request["length_bytes"])
        self._say({"ready": True})
        door.channel.messages(rows, request["count"], first=False)
        return {}

    def digest(self, request: dict[str, Any]) -> dict[str, Any]:
        """What the buffer holds, as a CRC32."""
        return {"crc32": zlib.crc32(self._bytes.data)}

    def clear(self, request: dict[str, Any]) -> dict[str, Any]:
        """The buffer, all zeros again."""
        self._bytes[:] = 0
        return {}

    def seat(self, request: dict[str, Any]) -> dict[str, Any]:
        """A listener of the public kind; its number and address."""
        channel = self._opened.channel(slots=request["slots"], spin_us=request["spin_us"])
        listener = self._opened.listen(
            _link.ADDRESS.decode(), require=request["path"], channel=channel
        )
        self._seats.append(Seat(channel, listener))
        return {"seat": len(self._seats) - 1, "address": listener.address}

    def sit(self, request: dict[str, Any]) -> dict[str, Any]:
        """Lets one peer in there, and takes the key of what it lets us write."""
        seat = self._seats[request["seat"]]
        endpoint = seat.listener.accept(
            window=seat.channel.slots // 2, timeout=PATIENCE_S, channel=seat.channel
        )
        self._seats[request["seat"]] = seat._replace(
            endpoint=endpoint, remote=endpoint.region(bytes.fromhex(request["key"]))
        )
        return {}

    def rounds(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answers each WRITE_IMM with one, from Python."""
        seat = self._seats[request["seat"]]
        assert seat.endpoint is not None
        assert seat.remote is not None
        source = self._buffer[: _link.PING_BYTES]
        self._say({"ready": True})
        remote = seat.remote[: _link.PING_BYTES]
        if request["loop"]:
            asyncio.run(
                _roundtrip.loop_rounds(seat.endpoint, source, remote, request["count"], first=False)
            )
        else:
            _roundtrip.rounds(seat.endpoint, source, remote, request["count"], first=False)
        return {}

    def stand(self, request: dict[str, Any]) -> dict[str, Any]:
        """Closes all of it."""
        seat = self._seats[request["seat"]]
        seat.listener.close()
        seat.channel.close()
        return {}

    def plain(self, request: dict[str, Any]) -> dict[str, Any]:
        """A plain TCP socket to be connected to; its port."""
        self._listening = socket.create_server(("127.0.0.1", 0))
        return {"port": self._listening.getsockname()[1]}

    def socket_receive(self, request: dict[str, Any]) -> dict[str, Any]:
        """Takes what the first rows say through the plain socket."""
        connection = self._connected
        self._say({"ready": True})
        _loops.socket_receive(connection.fileno(), self._bytes, self._rows[: request["count"]])
        return {}

    def socket_pong(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answers bytes on the plain socket."""
        connection = self._connected
        self._say({"ready": True})
        _loops.socket_pingpong(connection.fileno(), request["count"], first=False)
        return {}

    def idle(self, request: dict[str, Any]) -> dict[str, Any]:
        """CPU time this process needs to do nothing for so many seconds."""
        before = time.process_time_ns()
        time.sleep(request["seconds"])
        return {"cpu_ns": time.process_time_ns() - before}

    def memory(self, request: dict[str, Any]) -> dict[str, Any]:
        """Bytes of memory this process has."""
        return {"bytes": _link.memory_bytes()}

    @property
    def _opened(self) -> Plane:
        assert self._plane is not None
        return self._plane

    @property
    def _connected(self) -> socket.socket:
        if self._connection is None:
            assert self._listening is not None
            self._connection, _ = self._listening.accept()
            self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._connection


def _end_with_parent() -> None:
    """Nobody is left waiting for immediates of a bench that was interrupted."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Serves until stdin ends."""
    _end_with_parent()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what is printed by mistake is no answer

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    far = Far(say)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            say(getattr(far, request["do"])(request))
        except (dmaplane.DmaplaneError, OSError) as error:
            say({"error": f"{type(error).__name__}: {error}"})
    os._exit(0)  # everything goes with the process


if __name__ == "__main__":
    main()
