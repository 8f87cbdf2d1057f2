# SPDX-License-Identifier: MIT
"""Two network namespaces and a cable between them: other hosts, as far as a plane can tell.

The cable is pulled here. Delay and loss need the scheduler netem, which not every kernel
has: see test_netem.py.
"""

from __future__ import annotations

import errno
import time

from cable import NEAR, SECRET, SERVER, Cable, inside
from nursery import Nursery
from peers import bytes_of
from reach import ask, grant, reach

from dmaplane import _abi
from dmaplane._library import crc32c
from dmaplane.testing import _pair, _rig
from dmaplane.testing._pair import DETECTED_S, read, recv, send, write
from dmaplane.testing._rig import MIB, Rings


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
