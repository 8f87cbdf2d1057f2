# SPDX-License-Identifier: MIT
"""Programs with a plane that run in a machine of the pair, moved from the host by puppet.py.

The one that listens is `Server` of tests/endpoint/peers.py; the one that connects is here.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
import traceback
from typing import Any

import peers

import dmaplane
import dmaplane.doctor
from dmaplane import _abi
from dmaplane.testing import _pair, _rig
from dmaplane.testing._pair import Memory, Side
from dmaplane.testing._rig import Rings


class Lines:
    """The conversation with the host: a line of JSON each way. As peers.Talk."""

    def say(self, message: Any) -> None:
        print(json.dumps(message), flush=True)

    def hear(self) -> Any:
        said = sys.stdin.readline()
        if not said:
            os._exit(0)  # the test has ended
        return json.loads(said)


def live(program: str, settings: dict[str, Any]) -> None:
    """The life of a puppet: a program of this file or of peers.py."""
    talk = Lines()
    try:
        {"serve": peers.serve, "call": call}[program](talk, **settings)
    except BaseException:
        talk.say({"failed": traceback.format_exc()[-3000:]})


class Caller(peers.Server):
    """Connects, and does what it is told: what a server can do, and operations of each kind."""

    def __init__(
        self, talk: Lines, *, length_bytes: int, fill: int = 0, plane: str = "embedded"
    ) -> None:
        self.talk = talk
        self.plane = dmaplane.open(plane=plane)
        self.rings = Rings(self.plane, slots=128)
        self.memory = Memory(self.plane, length_bytes, fill)
        talk.say({"incarnation": self.plane.incarnation})

    def connect(
        self,
        address: str,
        secret: str,
        path: str | None = None,
        deadline_s: float = _rig.PATIENCE_S,
        **fields: int,
    ) -> dict[str, Any]:
        """CONNECT: its answer, and what it made."""
        answer, made = _pair.try_connect(
            self.plane,
            self.rings.id,
            address,
            path=path,
            secret=secret.encode(),
            deadline_ns=_rig.later(deadline_s),
            fields=fields,
        )
        if answer:
            return {"answer": answer}
        self.side = Side(self.plane, self.rings, made)
        found = self.side.query()
        shown = {"path": self.side.path, "epoch": self.side.epoch}
        return {"answer": 0, "incarnation": found.peer_incarnation, **shown}

    def take(self, key: str) -> None:
        """Imports what the server grants."""
        answer, imported = self.side.try_import(bytes.fromhex(key))
        _rig.expect(answer, 0)
        self.remote = imported.region_id

    def submit(
        self, kind: str, size: int, count: int = 1, number: int = 1, deadline_s: float = 0
    ) -> None:
        """So many of one kind; a message's bytes are one behind the other."""
        makers = {
            "write": lambda n: _pair.write(self.memory, self.remote, size),
            "write_imm": lambda n: _pair.write_imm(self.memory, self.remote, size, number + n),
            "read": lambda n: _pair.read(self.memory, self.remote, size),
            "send": lambda n: _pair.send(self.memory, size, n * size),
            "recv": lambda n: _pair.recv(self.memory, size, n * size),
        }
        until = {"deadline_ns": _rig.later(deadline_s)} if deadline_s else {}
        self.side.submit(*({**makers[kind](n), **until} for n in range(count)))

    def run(self, kind: str, size: int, count: int = 1, number: int = 1) -> list[int]:
        """The same, and their results."""
        self.submit(kind, size, count, number)
        return self.wait(count)

    def hammer(self, size: int, seconds: float) -> list[int]:
        """Writes for so long, whatever comes of it; the results there were."""
        limit, found = time.monotonic() + seconds, set[int]()
        while time.monotonic() < limit and -errno.ECONNRESET not in found:
            found.update(self.run("write", size, 4))
        return sorted(found)

    def interrupt(self, value: int, count: int) -> list[int]:
        """Cancels everything once a byte of the memory is no longer @value; the results."""
        _rig.wait_until_begun(self.memory.bytes, value)
        answer, _ = self.side.cancel(flags=_abi.CANCEL_ALL)
        _rig.expect(answer, 0)
        return self.wait(count)

    def descriptors(self) -> int:
        """How many files the process has open."""
        return len(os.listdir("/proc/self/fd"))

    def state(self) -> int:
        """Of the endpoint."""
        return int(self.side.query().state)

    def close(self) -> list[int]:
        """Ends the connection; endpoints and regions that the plane has left."""
        _rig.expect(self.side.destroy_region(self.remote), 0)
        _rig.expect(self.side.destroy(), 0)
        found = self.plane.statistics()
        return [found.endpoints, found.regions]


def call(talk: Lines, **settings: Any) -> None:
    """A Caller: {"do": one of its methods, its arguments}."""
    caller = Caller(talk, **settings)
    while True:
        order = talk.hear()
        talk.say(getattr(caller, order.pop("do"))(**order))


def examine() -> None:
    """What doctor says of this machine, as one line."""
    print(json.dumps(dmaplane.doctor.examine().as_json()))
