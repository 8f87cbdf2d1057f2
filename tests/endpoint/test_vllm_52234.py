# SPDX-License-Identifier: MIT
"""Five ways in which a KV-cache block was read or written by the wrong generation of its user.

vLLM issue 52234 lists them; none of them can happen on a connection of a plane. Each test
is one of them: it ends in an error at whoever holds the old right, and no byte of another
generation is ever seen or changed.
"""

from __future__ import annotations

import errno
import time

import numpy as np
import pytest
from nursery import Nursery
from reach import FIELDS, ask, grant, join

import dmaplane
from dmaplane import _abi
from dmaplane.testing import _pair, _rig
from dmaplane.testing._pair import read, recv, send, write, write_imm
from dmaplane.testing._rig import MIB, Rings, expect

BLOCK = 48 * MIB
"""A block long enough to be caught half-way: it takes milliseconds, to see that it has begun
takes microseconds."""

ATTEMPTS = 20
"""To catch one half-way, on a machine where somebody else may have the processor just then."""

OLD, NEW, MINE = 11, 22, 33


def test_failed_receive(nursery: Nursery, plane: dmaplane.Plane, rings: Rings, path: str) -> None:
    """The sender dies under a receive; what comes for the block's next user does not land there."""
    memory = None
    half_read = False
    for attempt in range(ATTEMPTS):
        with nursery.peer("serve", path=path, fill=OLD, length_bytes=BLOCK, fields=FIELDS) as peer:
            side, remote, _ = join(plane, rings, peer, path)
            memory = memory or side.memory(BLOCK)
            memory.bytes[:] = MINE
            side.submit(read(memory, remote, BLOCK, user_data=1))
            side.submit(recv(memory, 4096, user_data=2))
            if attempt:  # the first dies before it begins, or nearly
                _rig.wait_until_begun(memory.bytes, MINE)
            peer.kill()
            found = _rig.results(side.wait(2))
            assert found[2] == -errno.ECONNRESET
            assert found[1] in (0, -errno.ECONNRESET)
            if found[1]:
                values = set(np.unique(memory.bytes))
                assert values <= {OLD, MINE}
                half_read |= values == {OLD, MINE}
            side.event(_abi.EVENT_ENDPOINT_LOST)
        memory.bytes[:] = MINE
        with nursery.peer("serve", path=path, fill=NEW, length_bytes=BLOCK, fields=FIELDS) as peer:
            again, _, _ = join(plane, rings, peer, path)
            ask(peer, "send", size=4096)
            time.sleep(0.02)
            assert (memory.bytes == MINE).all(), "a receive that had failed was filled"
            inbox = again.memory(4096)
            again.submit(recv(inbox, 4096))
            assert int(again.wait()["result"][0]) == 0
            assert (inbox.bytes == NEW).all()
            assert (memory.bytes == MINE).all(), "a receive that had failed was filled"
        again.event(_abi.EVENT_ENDPOINT_LOST)
        if half_read:
            return
    pytest.fail("no receive was caught half-way: the block is too short for this test")


def test_stale_reference_after_reuse(
    nursery: Nursery, plane: dmaplane.Plane, rings: Rings, path: str
) -> None:
    """The block was freed and belongs to another request; the old reference still goes round."""
    with nursery.peer("serve", path=path, fill=OLD, length_bytes=MIB, fields=FIELDS) as peer:
        side, stale, said = join(plane, rings, peer, path)
        memory = side.memory(MIB)
        assert side.result(read(memory, stale, MIB)) == 0
        assert (memory.bytes == OLD).all()
        assert ask(peer, "revoke", region=said["region"]) == 0
        ask(peer, "fill", value=NEW)
        fresh = ask(peer, "grant")
        for _ in range(3):
            memory.bytes[:] = MINE
            assert side.result(read(memory, stale, MIB)) == -errno.ESTALE
            assert (memory.bytes == MINE).all(), "a stale reference read the next user's block"
            assert side.result(write(memory, stale, MIB)) == -errno.ESTALE
            assert side.result(write_imm(memory, stale, 4096, 1)) == -errno.ESTALE
            assert ask(peer, "values") == [NEW], "a stale reference wrote the next user's block"
        expect(side.try_import(bytes.fromhex(said["key"]))[0], errno.ESTALE)
        assert side.result(read(memory, grant(side, fresh), MIB)) == 0
        assert (memory.bytes == NEW).all()


@pytest.mark.parametrize("how", ["killed", "cancelled"])
def test_half_written_transfer(
    nursery: Nursery, plane: dmaplane.Plane, path: str, how: str
) -> None:
    """The writer stops half-way. Nobody is told that the block is there, and it can be had anew."""
    far = Rings(plane)
    listener, bound = _pair.listen(plane, far.id, path=path)  # type: ignore[arg-type]
    block = _pair.Memory(plane, BLOCK)
    half_written = 0
    for attempt in range(ATTEMPTS):
        block.bytes[:] = MINE
        made = _abi.RegionCreate(
            buffer_id=block.id, access=_abi.ACCESS_REMOTE_WRITE, length_bytes=BLOCK
        )
        expect(_rig.ask(plane, _abi.REGION_CREATE, made), 0)
        settings = {"bound": bound, "key": _pair.key_of(made).hex(), "size": BLOCK, "path": path}
        with nursery.peer("call", **settings, fill=OLD, fields=FIELDS, once=True) as peer:
            side = _pair.Side(plane, far, _pair.accept(plane, listener, far.id, **FIELDS))
            assert peer.hear() == "connected"
            peer.say("go")
            _rig.wait_until_begun(block.bytes, MINE)
            if how == "killed":
                peer.kill()
            else:
                peer.say("cancel")
                assert peer.hear() in (0, -errno.ECANCELED)
                expect(side.destroy(), 0)
            if how == "killed":
                side.event(_abi.EVENT_ENDPOINT_LOST)
            side.sort()
            announced = [e for e in side.events if int(e["operation"]) == _abi.EVENT_WRITE_IMM]
            expect(
                _rig.destroy(plane, _abi.REGION_DESTROY, made.region_id, drain_until=_rig.later()),
                0,
            )
            if announced:
                assert (block.bytes == OLD).all(), "announced, and not all of it is there"
            else:
                half_written += len(set(np.unique(block.bytes))) == 2
            assert set(np.unique(block.bytes)) <= {OLD, MINE}
            block.bytes[:] = NEW  # the next user's: the dead writer does not come back to it
            time.sleep(0.02)
            assert (block.bytes == NEW).all()
        if half_written and attempt >= 1:
            return
    pytest.fail("no transfer was caught half-way: the block is too short for this test")


def test_expired_lease(nursery: Nursery, plane: dmaplane.Plane, rings: Rings, path: str) -> None:
    """The lease ends while the block is being read: by the reader's deadline, by the owner's."""
    with nursery.peer("serve", path=path, fill=OLD, length_bytes=BLOCK, fields=FIELDS) as peer:
        side, remote, said = join(plane, rings, peer, path)
        memory = side.memory(BLOCK)
        started = time.monotonic()
        assert side.result(read(memory, remote, BLOCK)) == 0
        whole = time.monotonic() - started
        half_read = set()
        for attempt in range(ATTEMPTS):
            for mine in (True, False):
                old, new = 40 + 2 * attempt, 41 + 2 * attempt
                ask(peer, "fill", value=old)
                memory.bytes[:] = MINE
                entry = read(memory, remote, BLOCK)
                lease = whole * (0.05, 0.2, 0.4, 0.6, 0.8)[attempt % 5]
                side.submit({**entry, "deadline_ns": _rig.later(lease)} if mine else entry)
                if mine:
                    result = int(side.wait()["result"][0])
                    assert result in (0, -errno.ETIMEDOUT)
                    seen = memory.bytes.copy()
                else:
                    _rig.wait_until_begun(memory.bytes, MINE)
                assert ask(peer, "revoke", region=said["region"]) == 0
                ask(peer, "fill", value=new)
                if not mine:
                    result = int(side.wait()["result"][0])
                    assert result in (0, -errno.ESTALE)
                    seen = memory.bytes.copy()
                values = set(np.unique(seen))
                assert values <= {old, MINE}, "bytes of the block's next user"
                assert (memory.bytes == seen).all(), "it is read although the lease is over"
                assert result or (seen == old).all()
                if len(values) == 2:
                    half_read.add(mine)
                assert side.result(read(memory, remote, 4096)) == -errno.ESTALE
                expect(side.destroy_region(remote), 0)
                said = ask(peer, "grant")
                remote = grant(side, said)
            if half_read == {True, False} and attempt >= 2:
                return
    pytest.fail(f"half-way ended only {half_read}: the block is too short for this test")


def test_recycled_block(nursery: Nursery, plane: dmaplane.Plane, rings: Rings, path: str) -> None:
    """The memory itself was given back and had again: same size, same slot, another block."""
    with nursery.peer("serve", path=path, fill=OLD, length_bytes=MIB, fields=FIELDS) as peer:
        side, stale, said = join(plane, rings, peer, path)
        memory = side.memory(MIB)
        for value in (NEW, NEW + 1, NEW + 2):
            assert side.result(read(memory, stale, 64)) == 0
            assert ask(peer, "revoke", region=said["region"]) == 0
            assert ask(peer, "recycle", size=MIB, value=value) == 0
            fresh = ask(peer, "grant")
            assert fresh["key"] != said["key"]
            memory.bytes[:] = MINE
            assert side.result(read(memory, stale, MIB)) == -errno.ESTALE
            assert side.result(write(memory, stale, MIB)) == -errno.ESTALE
            assert (memory.bytes == MINE).all()
            assert ask(peer, "values") == [value]
            expect(side.try_import(bytes.fromhex(said["key"]))[0], errno.ESTALE)
            said, stale = fresh, grant(side, fresh)
            assert side.result(read(memory, stale, MIB)) == 0
            assert (memory.bytes == value).all()
        assert side.result(send(memory, 64)) == 0
