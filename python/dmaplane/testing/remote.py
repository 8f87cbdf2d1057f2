# SPDX-License-Identifier: MIT
"""WRITE, WRITE_IMM and READ: the peer's memory by its region. L1, and L10 for their checksums."""

from __future__ import annotations

import errno
import random
from typing import TYPE_CHECKING

import numpy as np

from dmaplane import _abi
from dmaplane._library import crc32c
from dmaplane._plane import PATHS, Capability
from dmaplane.testing import _pair, _rig
from dmaplane.testing._case import MakePlane, case_over_fabrics
from dmaplane.testing._pair import read, recv, send, write, write_imm
from dmaplane.testing._rig import MIB

if TYPE_CHECKING:
    from dmaplane._plane import Path
    from dmaplane.testing._pair import Side

SIZES = (1, 2, 7, 8, 63, 64, 65, 4095, 4096, 4097, 65537, MIB + 1, 5 * MIB + 3)
ROOM = 6 * MIB
CHECKED = _abi.SUBMIT_CHECKSUM
VERIFIED = _abi.SUBMIT_CHECKSUM | _abi.SUBMIT_VERIFY


@case_over_fabrics("L1")
def write_lands_exactly(make_plane: MakePlane, path: Path) -> None:
    """The region begins at an odd place too; the far program does nothing and hears nothing."""
    chance = random.Random(21)
    with _pair.connected(make_plane, path) as (near, far):
        source, target = near.memory(ROOM), far.memory(ROOM)
        source.scramble(1)
        begin = 13
        remote = near.import_region(far.region(target, offset=begin))
        for size in SIZES:
            at, to = chance.randrange(129), chance.randrange(129)
            target.bytes[: size + 400] = 0xEE
            done = near.run(write(source, remote, size, source_offset=at, target_offset=to))[0]
            assert int(done["result"]) == 0, _rig.name_of(int(done["result"]))
            assert int(done["length_bytes"]) == size
            assert PATHS[int(done["path"])] == path
            start = begin + to
            assert (target.bytes[start : start + size] == source.bytes[at : at + size]).all(), size
            assert (target.bytes[:start] == 0xEE).all(), f"before {size} bytes"
            assert (target.bytes[start + size : size + 400] == 0xEE).all(), f"after {size} bytes"
        assert far.completed() == 0
        assert not far.events


@case_over_fabrics("L1")
def read_brings_exactly(make_plane: MakePlane, path: Path) -> None:
    chance = random.Random(22)
    with _pair.connected(make_plane, path) as (near, far):
        source, target = far.memory(ROOM), near.memory(ROOM)
        source.scramble(2)
        begin = 29
        remote = near.import_region(far.region(source, _abi.ACCESS_REMOTE_READ, offset=begin))
        for size in SIZES:
            at, to = chance.randrange(129), chance.randrange(129)
            target.bytes[: size + 400] = 0xEE
            done = near.run(read(target, remote, size, source_offset=at, target_offset=to))[0]
            assert int(done["result"]) == 0, _rig.name_of(int(done["result"]))
            assert int(done["length_bytes"]) == size
            assert PATHS[int(done["path"])] == path
            start = begin + at
            wanted = source.bytes[start : start + size]
            assert (target.bytes[to : to + size] == wanted).all(), size
            assert (target.bytes[:to] == 0xEE).all(), f"before {size} bytes"
            assert (target.bytes[to + size : size + 400] == 0xEE).all(), f"after {size} bytes"
        assert far.completed() == 0
        assert not far.events


@case_over_fabrics("L1")
def write_imm_lands_before_its_event(make_plane: MakePlane, path: Path) -> None:
    """Each event comes once, in order, with its number; its bytes are there when it is seen."""
    total, size = 300, 3001
    fields = {**_pair.WINDOW, "user_data": 4711}
    with _pair.connected(make_plane, path, far_fields=fields) as (near, far):
        source, target = near.memory(total * size), far.memory(total * size)
        source.scramble(3)
        remote = near.import_region(far.region(target))
        sent = 0
        for number in range(total):
            while sent < total and sent - number < 32:
                place = sent * size
                near.submit(
                    write_imm(
                        source,
                        remote,
                        size,
                        0xFFFF0000 | sent,
                        source_offset=place,
                        target_offset=place,
                        user_data=sent,
                    )
                )
                sent += 1
            event = far.event(_abi.EVENT_WRITE_IMM)
            assert int(event["immediate"]) == 0xFFFF0000 | number
            assert int(event["flags"]) & _abi.COMPLETE_IMMEDIATE
            assert int(event["result"]) == 0
            assert int(event["user_data"]) == 4711
            assert int(event["length_bytes"]) == size
            assert PATHS[int(event["path"])] == path
            landed = slice(number * size, (number + 1) * size)
            assert (target.bytes[landed] == source.bytes[landed]).all(), number
            near.sort()
        assert set(_rig.results(near.wait(total)).items()) == {(n, 0) for n in range(total)}
        assert not far.events


@case_over_fabrics("L1")
def batch_of_writes_to_scattered_places_is_exact(make_plane: MakePlane, path: Path) -> None:
    chance = random.Random(23)
    blocks, size = 512, 4096
    with _pair.connected(make_plane, path, slots=256) as (near, far):
        source, target = near.memory(blocks * size), far.memory(blocks * size)
        back = near.memory(blocks * size)
        source.scramble(4)
        remote = near.import_region(far.region(target))
        places = chance.sample(range(blocks), blocks)
        for first in range(0, blocks, 128):
            numbers = range(first, first + 128)
            done = near.run(
                *(
                    write(
                        source,
                        remote,
                        size,
                        source_offset=n * size,
                        target_offset=places[n] * size,
                    )
                    for n in numbers
                )
            )
            assert not done["result"].any()
            assert sorted(done["user_data"].tolist()) == list(range(1, 129))
        wanted = np.empty_like(source.bytes)
        for n, place in enumerate(places):
            wanted[place * size : (place + 1) * size] = source.bytes[n * size : (n + 1) * size]
        assert (target.bytes == wanted).all()
        for first in range(0, blocks, 128):
            numbers = range(first, first + 128)
            done = near.run(
                *(
                    read(back, remote, size, source_offset=places[n] * size, target_offset=n * size)
                    for n in numbers
                )
            )
            assert not done["result"].any()
        assert (back.bytes == source.bytes).all()


@case_over_fabrics("L1")
def small_ones_pass_while_large_ones_are_under_way(make_plane: MakePlane, path: Path) -> None:
    """On a second endpoint of the same channels: nobody has to wait for another's 64 MiB."""
    large = 64 * MIB
    with make_plane() as one, make_plane() as other:
        ends = ((one, _rig.Rings(one, slots=64)), (other, _rig.Rings(other, slots=64)))
        big, big_far = _pair.join(*ends, path)
        small, small_far = _pair.join(*ends, path)
        source, target = big.memory(large), big_far.memory(large)
        source.scramble(5)
        little, landed = small.memory(4096), small_far.memory(4096)
        little.scramble(6)
        big_remote = big.import_region(big_far.region(target))
        small_remote = small.import_region(small_far.region(landed))
        big.submit(*(write(source, big_remote, large, user_data=1) for _ in range(8)))
        small.submit(write(little, small_remote, 4096, user_data=2))
        done = big.wait(9)
        assert not done["result"].any()
        order = done["user_data"].tolist()
        assert order.index(2) < 8, "the small one waited for all of the large ones"
        assert (target.bytes == source.bytes).all()
        assert (landed.bytes == little.bytes).all()


@case_over_fabrics("L10", needs=Capability.CHECKSUM)
def checksum_is_of_the_bytes_that_moved(make_plane: MakePlane, path: Path) -> None:
    with _pair.connected(make_plane, path) as (near, far):
        source, target = near.memory(2 * MIB), far.memory(2 * MIB)
        back = near.memory(2 * MIB)
        source.scramble(7)
        remote = near.import_region(far.region(target))
        for size in (1, 9, 4096, 70_001, 2 * MIB - 3):
            wanted = crc32c(bytes(source.bytes[:size]))
            for flags in (CHECKED, VERIFIED):
                check = {"flags": flags, "checksum": wanted if flags == VERIFIED else 0}
                for entry in (
                    write(source, remote, size, **check),
                    write_imm(source, remote, size, 1, **check),
                    read(back, remote, size, **check),
                ):
                    done = near.run(entry)[0]
                    assert int(done["result"]) == 0, f"{entry}: {int(done['result'])}"
                    assert int(done["flags"]) & _abi.COMPLETE_CHECKSUM, f"{entry}"
                    assert int(done["checksum"]) == wanted, f"{entry}"
                far.event(_abi.EVENT_WRITE_IMM)
            assert (back.bytes[:size] == source.bytes[:size]).all()


@case_over_fabrics("L10", needs=Capability.CHECKSUM)
def bytes_that_do_not_match_are_ebadmsg(make_plane: MakePlane, path: Path) -> None:
    """No event announces them, and what comes after them is served."""
    with _pair.connected(make_plane, path) as (near, far):
        source, target = near.memory(70_000), far.memory(70_000)
        source.scramble(8)
        remote = near.import_region(far.region(target))
        for size in (9, 4096, 70_000):
            wrong = crc32c(bytes(source.bytes[:size])) ^ 0x80000000
            target.bytes[:] = source.bytes
            check = {"flags": VERIFIED, "checksum": wrong}
            for entry in (
                write(source, remote, size, **check),
                write_imm(source, remote, size, 99, **check),
                read(near.memory(70_000), remote, size, **check),
            ):
                got = near.result(entry)
                assert got == -errno.EBADMSG, f"{entry}: {_rig.name_of(got)}"
            assert near.result(write_imm(source, remote, size, 1)) == 0
            event = far.event(_abi.EVENT_WRITE_IMM)
            assert int(event["immediate"]) == 1, "bytes that do not match were announced"
        assert near.query().state == _abi.STATE_LIVE


def _wrong_rows(near: Side, remote: int) -> tuple[tuple[dict[str, int], tuple[int, ...]], ...]:
    memory = near.memory(4096)
    put, get = write(memory, remote, 64), read(memory, remote, 64)
    wrong, absent = (errno.EINVAL,), (errno.ENOENT,)
    overflow = (errno.EINVAL, errno.EOVERFLOW)
    return (
        ({**put, "endpoint_id": 4_000_000_000}, absent),
        ({**put, "source_id": 4_000_000_000}, absent),
        ({**put, "target_id": 4_000_000_000}, absent),
        ({**get, "source_id": 4_000_000_000}, absent),
        ({**get, "target_id": 4_000_000_000}, absent),
        ({**put, "target_id": memory.id}, (errno.EINVAL, errno.ENOENT)),
        ({**get, "source_id": memory.id}, (errno.EINVAL, errno.ENOENT)),
        ({**put, "source_id": remote}, (errno.EINVAL, errno.ENOENT)),
        ({**put, "length_bytes": 0}, wrong),
        ({**get, "length_bytes": 0}, wrong),
        ({**put, "immediate": 1}, wrong),
        ({**get, "immediate": 1}, wrong),
        ({**put, "checksum": 1}, wrong),
        ({**put, "source_offset": 4090}, wrong),
        ({**get, "target_offset": 4090}, wrong),
        ({**put, "target_offset": 8129}, wrong),
        ({**get, "source_offset": 8129}, wrong),
        ({**put, "target_offset": 8192}, wrong),
        ({**put, "target_offset": (1 << 64) - 64}, overflow),
        ({**get, "source_offset": (1 << 64) - 64}, overflow),
        ({**put, "target_offset": (1 << 64) - 1}, overflow),
        ({**put, "length_bytes": (1 << 64) - 1}, overflow),
        ({**put, "operation": 21}, wrong),
        ({**put, "flags": 1 << 15}, wrong),
    )


@case_over_fabrics("L12")
def wrong_transfer_completes_with_its_error(make_plane: MakePlane, path: Path) -> None:
    """Not a byte of the peer changes by any of them, inside the region or beside it."""
    with _pair.connected(make_plane, path) as (near, far):
        target = far.memory(3 * 8192, fill=5)
        remote = near.import_region(far.region(target, offset=8192, length_bytes=8192))
        for entry, wanted in _wrong_rows(near, remote):
            done = near.run(entry)[0]
            assert -int(done["result"]) in wanted, f"{entry}: {_rig.name_of(int(done['result']))}"
            assert int(done["length_bytes"]) == 0
            assert (target.bytes == 5).all(), f"{entry} changed bytes"
        assert near.result(write(near.memory(8192, fill=6), remote, 8192)) == 0
        assert (target.bytes[8192:16384] == 6).all()
        assert (target.bytes[:8192] == 5).all()
        assert (target.bytes[16384:] == 5).all()


@case_over_fabrics("L1")
def every_mix_on_a_connection_completes_once(make_plane: MakePlane, path: Path) -> None:
    """All operations from both ends, deadlines and cancels among them; seeds are fixed."""
    for seed in range(4):
        chance = random.Random(seed)
        with _pair.connected(make_plane, path, slots=128) as pair:
            ends = []
            for side, peer in (pair, pair[::-1]):
                shared = peer.memory(MIB)
                ends.append((side, side.memory(MIB), side.import_region(peer.region(shared))))
            accepted = {id(side): 0 for side in pair}
            finished: dict[int, list[np.void]] = {id(side): [] for side in pair}
            for _ in range(120):
                side, memory, remote = chance.choice(ends)
                first = accepted[id(side)]
                if first - len(finished[id(side)]) < 64:
                    rows = [
                        {**_any_entry(chance, memory, remote), "user_data": first + n}
                        for n in range(chance.randint(1, 6))
                    ]
                    side.submit(*rows)
                    accepted[id(side)] += len(rows)
                if chance.random() < 0.1 and first:
                    answer, _ = side.cancel(chance.randrange(first))
                    _rig.expect(answer, 0, errno.ENOENT)
                for one in pair:
                    finished[id(one)] += list(one.wait(one.completed()))
            for one in pair:
                answer, _ = one.cancel(flags=_abi.CANCEL_ALL)
                _rig.expect(answer, 0, errno.ENOENT)
            for one in pair:
                missing = accepted[id(one)] - len(finished[id(one)])
                finished[id(one)] += list(one.wait(missing))
                found = _rig.results(np.array(finished[id(one)], dtype=_abi.COMPLETION))
                assert set(found) == set(range(accepted[id(one)])), f"seed {seed}"
                ends_known = {0, errno.ECANCELED, errno.ETIMEDOUT, errno.EOVERFLOW, errno.EAGAIN}
                assert {-result for result in found.values()} <= ends_known, f"seed {seed}"
                assert one.completed() == 0
                assert one.query().operations == 0
                assert one.query().state == _abi.STATE_LIVE, f"seed {seed}"


def _any_entry(chance: random.Random, memory: _pair.Memory, remote: int) -> dict[str, int]:
    size = chance.choice((1, 100, 5000, 200_000))
    entry = chance.choice(
        (
            send(memory, size),
            recv(memory, size + chance.choice((0, 200_000))),
            write(memory, remote, size),
            write_imm(memory, remote, size, 3),
            read(memory, remote, size),
        )
    )
    if chance.random() < 0.2:
        entry["deadline_ns"] = _rig.later(chance.choice((-1.0, 0.0, 0.002, 0.02)))
    if chance.random() < 0.1:
        entry["flags"] = _abi.SUBMIT_NOWAIT
    return entry
