# SPDX-License-Identifier: MIT
"""Who has nothing to do sleeps, in whatever state its peer has left it.

A busy executor asks for a whole processor, one that sleeps for next to nothing of it. A
quarter is far from both.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from nursery import Nursery
from reach import join

import dmaplane
from dmaplane import _abi
from dmaplane.testing import _pair, _rig
from dmaplane.testing._pair import Meanwhile, Side, read, send, write, write_imm
from dmaplane.testing._rig import MIB, Rings, expect

LONG = 48 * MIB
PATIENT = {**_pair.WINDOW, "detect_ms": 600_000}
WINDOW_S = 0.15


def processor_seconds() -> float:
    """On a processor or waiting for one, all threads: what was asked for, whoever else is busy."""
    with contextlib.suppress(OSError):
        lines = [task.read_text() for task in Path("/proc/self/task").glob("*/schedstat")]
        asked = [line.split()[:2] for line in lines]
        if asked:
            return sum(int(number) for pair in asked for number in pair) / 1e9
    return time.process_time()


def sleeps(what: str) -> None:
    """This process comes to rest, once it has done what was still to be done.

    Three windows in a row, since who waits for a processor is counted when he gets it.
    """
    limit = time.monotonic() + _rig.PATIENCE_S
    quiet = 0
    while quiet < 3:
        assert time.monotonic() < limit, f"busy: {what}"
        before = processor_seconds()
        time.sleep(WINDOW_S)
        quiet = quiet + 1 if processor_seconds() - before < WINDOW_S / 4 else 0


@pytest.mark.parametrize("kind", ["write", "write_imm", "read", "send"])
def test_peer_that_stops_in_mid_transfer(
    nursery: Nursery, plane: dmaplane.Plane, rings: Rings, path: str, kind: str
) -> None:
    """A payload half gone, half come; a ring or a socket that is full; then the peer is killed."""
    settings = {"length_bytes": LONG, "fill": 3, "fields": PATIENT}
    with nursery.peer("serve", path=path, **settings) as peer:
        side, remote, _ = join(plane, rings, peer, path, detect_ms=PATIENT["detect_ms"])
        memory = side.memory(LONG)
        entry = {
            "write": write(memory, remote, LONG),
            "write_imm": write_imm(memory, remote, LONG, 1),
            "read": read(memory, remote, LONG),
            "send": send(memory, 60_000),
        }[kind]
        if kind == "send":  # nobody posts a RECV for it
            side.submit(*([entry] * 40))
            sleeps("no credit")
            peer.signal(signal.SIGSTOP)
        else:
            memory.bytes[0] = 1
            side.submit(*([entry] * 6))
            if kind == "read":
                _rig.wait_until_begun(memory.bytes, 1)
            peer.signal(signal.SIGSTOP)
        sleeps("the peer stands still")
        peer.kill()
        side.event(_abi.EVENT_ENDPOINT_LOST)
        sleeps("the peer is gone")


def test_unread_events_fill_the_ring(nursery: Nursery, plane: dmaplane.Plane, path: str) -> None:
    """The peer goes on, and is killed, while nobody reads what it has done."""
    far = Rings(plane, slots=4)
    listener, bound = _pair.listen(plane, far.id, path=path)  # type: ignore[arg-type]
    block = _pair.Memory(plane, 4096)
    made = _abi.RegionCreate(buffer_id=block.id, access=_abi.ACCESS_REMOTE_WRITE, length_bytes=4096)
    expect(_rig.ask(plane, _abi.REGION_CREATE, made), 0)
    settings = {"bound": bound, "key": _pair.key_of(made).hex(), "size": 64, "path": path}
    with nursery.peer("call", **settings, fields=PATIENT) as peer:
        side = Side(plane, far, _pair.accept(plane, listener, far.id, **PATIENT))
        assert peer.hear() == "connected"
        _rig.wait_until(lambda: bool(block.bytes[0]), _rig.PATIENCE_S, "it writes")
        sleeps("events wait for a slot")
        peer.kill()
        sleeps("and one of them is that the peer is gone")
        side.event(_abi.EVENT_ENDPOINT_LOST)
        sleeps("all is read")


class Line:
    """A relay of one connection over tcp, whose ends are closed one by one."""

    def __init__(self, bound: str) -> None:
        host, _, port = bound.rpartition(":")
        self._door = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._door.getsockname()[1]}"
        self._target = (host, int(port))
        self.ends: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        self.ends = [self._door.accept()[0], socket.create_connection(self._target)]
        for one, other in (self.ends, self.ends[::-1]):
            threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    def _pump(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while said := one.recv(1 << 16):
                other.sendall(said)

    def close(self) -> None:
        for end in (*self.ends, self._door):
            with contextlib.suppress(OSError):  # the other side was first
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@pytest.mark.parametrize("busy", [False, True], ids=["quiet", "waiting"])
def test_half_closed_line(plane: dmaplane.Plane, rings: Rings, busy: bool) -> None:
    """An end of the stream without an end of the connection: it is lost, and that is all."""
    with dmaplane.open(plane="embedded") as other, Rings(other) as theirs:
        listener, bound = _pair.listen(other, theirs.id, path="tcp")
        line = Line(bound)
        near, far = _pair.meet(
            (plane, rings), (other, theirs), "tcp", listener, line.address, b"", PATIENT, PATIENT
        )
        if busy:
            near.submit(*([send(near.memory(MIB), 60_000)] * 40))
            sleeps("no credit")
        line.ends[0].shutdown(socket.SHUT_WR)
        near.event(_abi.EVENT_ENDPOINT_LOST)
        sleeps("one half is closed")
        assert far.query().state == _abi.STATE_LIVE
        line.close()
        far.event(_abi.EVENT_ENDPOINT_LOST)
        sleeps("both are closed")


def _nothing(_: socket.socket) -> None:
    pass


def _half(end: socket.socket) -> None:
    end.sendall(b"DMPF" + bytes(40))


def _half_and_no_more(end: socket.socket) -> None:
    _half(end)
    end.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("says", [_nothing, _half, _half_and_no_more])
def test_handshake_that_does_not_go_on(
    plane: dmaplane.Plane, rings: Rings, says: Callable[[socket.socket], None]
) -> None:
    """Who connects, and who is connected to, waits without a processor, until its time is over."""
    fields = {"deadline_ns": _rig.later(0.8)}
    door = socket.create_server(("127.0.0.1", 0))
    bound = f"127.0.0.1:{door.getsockname()[1]}"
    used = processor_seconds()
    with Meanwhile(
        lambda: _pair.try_connect(plane, rings.id, bound, path="tcp", fields=fields)
    ) as dialling:
        end, _ = door.accept()
        says(end)
        answer, _ = dialling.answer()
    assert answer < 0
    end.close()
    listener, bound = _pair.listen(plane, rings.id, path="tcp")
    with Meanwhile(
        lambda: _pair.try_accept(plane, listener, rings.id, deadline_ns=_rig.later(0.8))
    ) as accepting:
        host, _, port = bound.rpartition(":")
        with socket.create_connection((host, int(port))) as end:
            says(end)
            answer, _ = accepting.answer()
    assert answer < 0
    door.close()
    assert processor_seconds() - used < 0.8
