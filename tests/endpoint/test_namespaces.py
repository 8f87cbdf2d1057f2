# SPDX-License-Identifier: MIT
"""Two network namespaces and a cable between them: other hosts, as far as a plane can tell.

The cable is pulled here. Delay and loss need the scheduler netem, which not every kernel
has; tests/kernel/test_endpoint.py has them in a machine of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import subprocess
import time
from collections.abc import Iterator

import pytest
from nursery import Nursery
from peers import bytes_of, enter_namespace
from reach import FIELDS, ask, grant, reach

import dmaplane
from dmaplane import _abi
from dmaplane._library import crc32c
from dmaplane.testing import _pair, _rig
from dmaplane.testing._pair import DETECTED_S, read, recv, send, write
from dmaplane.testing._rig import MIB, Rings

SECRET = "two namespaces, one secret"
NEAR, FAR = "10.73.91.1", "10.73.91.2"


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


class Cable:
    """Two namespaces, named after this process, and a pair of virtual devices between them."""

    def __init__(self) -> None:
        self.names = (f"dmp{os.getpid()}a", f"dmp{os.getpid()}b")

    def lay(self) -> None:
        near, far = self.names
        for name in self.names:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", near, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", far)
        for name, address in ((near, NEAR), (far, FAR)):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "wire")
            _ip("-n", name, "link", "set", "wire", "up")

    def pull(self) -> None:
        """The link goes down: nothing is said to either end of a connection."""
        _ip("-n", self.names[1], "link", "set", "wire", "down")

    def plug(self) -> None:
        """It comes back."""
        _ip("-n", self.names[1], "link", "set", "wire", "up")

    def clear(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


@pytest.fixture
def cable() -> Iterator[Cable]:
    if not shutil.which("ip"):
        pytest.skip("missing-tool: ip")
    if os.geteuid():
        pytest.skip("missing-right: network namespaces are made by root")
    made = Cable()
    try:
        try:
            made.lay()
        except AssertionError as reason:
            pytest.skip(f"missing-right: {reason}")
        yield made
    finally:
        made.clear()


@contextlib.contextmanager
def inside(name: str) -> Iterator[dmaplane.Plane]:
    """A plane whose threads and sockets are in a namespace; this thread comes back out of it."""
    with open("/proc/thread-self/ns/net", "rb") as own:
        enter_namespace(name)
        try:
            with dmaplane.open(plane="embedded") as plane:
                yield plane
        finally:
            assert ctypes.CDLL(None).setns(own.fileno(), 0) == 0


SERVER = {
    "address": f"{FAR}:0",
    "secret": SECRET,
    "length_bytes": 64 * MIB,
    "fill": 3,
    "fields": FIELDS,
}


def test_another_host_is_reached_by_tcp(nursery: Nursery, cable: Cable) -> None:
    """Nothing is required: across a cable there is no shared memory, and the secret is needed."""
    with (
        nursery.peer("serve", namespace=cable.names[1], **SERVER) as peer,
        inside(cable.names[0]) as plane,
    ):
        rings = Rings(plane)
        bound = peer.hear()["bound"]
        answer, _ = _pair.try_connect(plane, rings.id, bound, path="shm", secret=SECRET.encode())
        assert answer == -errno.ENODEV
        side = reach(plane, rings, bound, None, secret=SECRET)
        assert side.path == _abi.PATH_TCP
        remote = grant(side, peer.hear())
        memory = side.memory(64 * MIB)
        memory.bytes[:] = bytes_of(1, 64 * MIB)
        assert side.result(write(memory, remote, 64 * MIB)) == 0
        assert ask(peer, "checksum", size=64 * MIB) == crc32c(bytes(memory.bytes))
        ask(peer, "scramble", seed=2)
        assert side.result(read(memory, remote, 64 * MIB)) == 0
        assert (memory.bytes == bytes_of(2, 64 * MIB)).all()


def test_pulled_cable_is_found_out(nursery: Nursery, cable: Cable) -> None:
    """At both ends, idle or in mid-transfer, within the detection time; then it works again."""
    with (
        nursery.peer("serve", namespace=cable.names[1], **SERVER) as peer,
        inside(cable.names[0]) as plane,
    ):
        rings = Rings(plane)
        bound = peer.hear()["bound"]
        for busy in (False, True):
            side = reach(plane, rings, bound, None, secret=SECRET)
            remote = grant(side, peer.hear())
            memory = side.memory(64 * MIB)
            side.submit(recv(memory, 64, user_data=1))
            if busy:
                assert peer.hear() is None  # its "again" is done
                side.submit(*(write(memory, remote, 64 * MIB) for _ in range(8)))
                side.submit(*(read(memory, remote, 64 * MIB) for _ in range(8)))
            cable.pull()
            pulled = time.monotonic()
            done = side.wait(17 if busy else 1)["result"].tolist()
            assert -errno.ECONNRESET in done
            assert set(done) <= {0, -errno.ECONNRESET}
            side.event(_abi.EVENT_ENDPOINT_LOST)
            assert ask(peer, "lost") == -errno.ECONNRESET
            assert time.monotonic() - pulled < DETECTED_S
            memory.bytes[::64] = 0xAA
            cable.plug()
            time.sleep(0.05)
            assert (memory.bytes[::64] == 0xAA).all(), "what was in flight came in afterwards"
            assert 0xAA not in ask(peer, "values")
            peer.say({"do": "again"})
        again = reach(plane, rings, bound, None, secret=SECRET)
        assert "key" in peer.hear()
        assert again.epoch != side.epoch


def test_half_open_connection_is_found_out(nursery: Nursery, cable: Cable) -> None:
    """One end dies while the cable is out: when it is back, the other has no partner."""
    with inside(cable.names[0]) as plane:
        rings = Rings(plane)
        with nursery.peer("serve", namespace=cable.names[1], **SERVER) as peer:
            bound = peer.hear()["bound"]
            side = reach(plane, rings, bound, None, secret=SECRET, detect_ms=60_000)
            grant(side, peer.hear())
            side.submit(recv(side.memory(64), 64))
            cable.pull()
            peer.kill()
        cable.plug()
        # Not silence but its own answer gives it away: nobody there knows the connection.
        side.submit(send(side.memory(64), 64))
        done = side.wait(2)["result"].tolist()
        assert set(done) == {-errno.ECONNRESET}
        side.event(_abi.EVENT_ENDPOINT_LOST)


def test_no_secret_no_listener_off_loopback(nursery: Nursery, cable: Cable) -> None:
    with inside(cable.names[0]) as plane, Rings(plane) as rings:
        answer, _ = _pair.try_listen(plane, rings.id, f"{NEAR}:0")
        assert -answer in (errno.EPERM, errno.EINVAL, errno.EACCES), _rig.name_of(answer)
        answer, made = _pair.try_listen(plane, rings.id, f"{NEAR}:0", secret=SECRET.encode())
        assert answer == 0
        _rig.expect(_rig.destroy(plane, _abi.LISTENER_DESTROY, made.listener_id), 0)
