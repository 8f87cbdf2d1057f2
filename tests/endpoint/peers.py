# SPDX-License-Identifier: MIT
"""What the peers of the tests do: programs, each run in a process of its own by nursery.py."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import time
from typing import Any

import numpy as np

import dmaplane
from dmaplane import _abi
from dmaplane._library import crc32c
from dmaplane.testing import _pair, _rig
from dmaplane.testing._pair import Memory, Side, key_of
from dmaplane.testing._rig import MIB, Rings

CLONE_NEWNET = 0x40000000


class Talk:
    """The peer's end of the conversation with its test."""

    def __init__(self, talk: socket.socket) -> None:
        self._talk = talk

    def say(self, message: Any) -> None:
        self._talk.sendall(json.dumps(message).encode())

    def hear(self) -> Any:
        said = self._talk.recv(1 << 16)
        if not said:
            os._exit(0)  # the test has ended
        return json.loads(said)


def enter_namespace(name: str) -> None:
    """Into a network namespace that `ip netns add` made."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{name}", "rb") as namespace:
        if libc.setns(namespace.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


def bytes_of(seed: int, length_bytes: int) -> np.ndarray:
    """The same bytes here and there."""
    return np.random.default_rng(seed).integers(0, 256, length_bytes, dtype=np.uint8)


class Host:
    """A peer that listens: a plane, a door, and memory it grants."""

    def __init__(self, talk: Talk, **settings: Any) -> None:
        if settings.get("namespace"):
            enter_namespace(settings["namespace"])
        self.talk = talk
        self.secret = settings.get("secret", "").encode()
        self.plane = dmaplane.open(plane=settings.get("plane", "embedded"))
        self.rings = Rings(self.plane, slots=128)
        self.fields = settings.get("fields", {})
        answer, made = _pair.try_listen(
            self.plane,
            self.rings.id,
            settings.get("address", _pair.LOOPBACK),
            path=settings.get("path"),
            secret=self.secret,
            fields=settings.get("listen"),
        )
        _rig.expect(answer, 0)
        self.listener, bound = made.listener_id, _pair.text(made.bound_address)
        self.memory = Memory(self.plane, settings.get("length_bytes", MIB))
        self.memory.bytes[:] = settings.get("fill", 0)
        talk.say({"bound": bound, "incarnation": self.plane.incarnation})

    def accept(self) -> Side:
        """One connection, and the key of all the memory."""
        made = _pair.accept(self.plane, self.listener, self.rings.id, **self.fields)
        side = Side(self.plane, self.rings, made)
        region = side.region(self.memory)
        self.talk.say({"key": key_of(region).hex(), "region": region.region_id})
        return side


class Server(Host):
    """Does what it is told, one order after the other; the answer says that it is done."""

    def __init__(self, talk: Talk, **settings: Any) -> None:
        super().__init__(talk, **settings)
        self.side = self.accept()
        if settings.get("receives"):
            self.post(4096, count=settings["receives"])

    def post(self, size: int, at: int = 0, count: int = 1) -> None:
        """RECVs, one behind the other in memory."""
        self.side.submit(*(_pair.recv(self.memory, size, at + n * size) for n in range(count)))

    def wait(self, count: int = 1) -> list[int]:
        """Waits for completions; their results."""
        results: list[int] = self.side.wait(count)["result"].tolist()
        return results

    def immediate(self) -> int:
        """Waits for the event of a WRITE_IMM; its number."""
        return int(self.side.event(_abi.EVENT_WRITE_IMM)["immediate"])

    def send(self, size: int, at: int = 0) -> None:
        """A SEND."""
        self.side.submit(_pair.send(self.memory, size, at))

    def checksum(self, size: int, at: int = 0) -> int:
        """CRC32C of a range of the memory."""
        return crc32c(bytes(self.memory.bytes[at : at + size]))

    def values(self) -> list[int]:
        """Which bytes there are in the memory."""
        found: list[int] = np.unique(self.memory.bytes).tolist()
        return found

    def fill(self, value: int) -> None:
        """The memory, with one value."""
        self.memory.bytes[:] = value

    def scramble(self, seed: int) -> None:
        """The memory, with bytes_of(seed)."""
        self.memory.bytes[:] = bytes_of(seed, len(self.memory.bytes))

    def watch(self, value: int, seconds: float) -> bool:
        """Whether for so long every byte of the memory is @value."""
        limit = time.monotonic() + seconds
        while (self.memory.bytes == value).all():
            if time.monotonic() > limit:
                return True
        return False

    def revoke(self, region: int) -> int:
        """Takes a grant back; when it has answered, nobody uses it any more."""
        return self.side.destroy_region(region, drain_until=_rig.later())

    def grant(self) -> dict[str, Any]:
        """A new region of all the memory."""
        made = self.side.region(self.memory)
        return {"key": key_of(made).hex(), "region": made.region_id}

    def recycle(self, size: int, value: int) -> int:
        """The buffer itself goes, and another takes its place."""
        self.memory.mapped.unmap()
        answer = _rig.destroy(self.plane, _abi.BUFFER_DESTROY, self.memory.id)
        self.memory = Memory(self.plane, size, value)
        return answer

    def lost(self) -> int:
        """Waits for the connection to be lost; the reason."""
        return int(self.side.event(_abi.EVENT_ENDPOINT_LOST)["result"])

    def again(self) -> None:
        """Accepts another connection; the last one is destroyed."""
        _rig.expect(self.side.destroy(), 0)
        self.side = self.accept()


def serve(talk: Talk, **settings: Any) -> None:
    """Accepts one connection and serves it: {"do": a method of Server, its arguments}."""
    server = Server(talk, **settings)
    while True:
        order = talk.hear()
        talk.say(getattr(server, order.pop("do"))(**order))


def call(talk: Talk, *, bound: str, key: str, size: int, **settings: Any) -> None:
    """Connects to the test itself and writes into its region.

    Until it is killed; or with `once` once, when it is told, and cancels that if it is told.
    """
    plane = dmaplane.open(plane="embedded")
    rings = Rings(plane, slots=64)
    answer, made = _pair.try_connect(
        plane, rings.id, bound, path=settings["path"], fields=settings.get("fields")
    )
    _rig.expect(answer, 0)
    side = Side(plane, rings, made)
    answer, imported = side.try_import(bytes.fromhex(key))
    _rig.expect(answer, 0)
    memory = Memory(plane, size, settings.get("fill", 1))
    talk.say("connected")
    remote, number = imported.region_id, 0
    if settings.get("once"):
        talk.hear()
        side.submit(_pair.write_imm(memory, remote, size, 1))
        talk.hear()
        side.cancel(1)
        talk.say(int(side.wait()["result"][0]))
        talk.hear()
    while True:
        side.run(*(_pair.write_imm(memory, remote, size, number + n) for n in range(4)))
        number += 4


def end_under_fire(talk: Talk, *, path: Any, rounds: int) -> None:
    """Channels that end while writes come in, so that their executors are mostly at work."""
    for _ in range(rounds):
        with _pair.connected(lambda: dmaplane.open(plane="embedded"), path) as (near, far):
            target, source = near.memory(4096), far.memory(4096)
            remote = far.import_region(near.region(target))
            far.submit(*([_pair.write(source, remote, 64)] * 32))
            near.rings.unmap()
            _rig.expect(_rig.destroy(near.plane, _abi.CHANNEL_DESTROY, near.rings.id), 0)
    talk.say(rounds)
