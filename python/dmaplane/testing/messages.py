# SPDX-License-Identifier: MIT
"""SEND and RECV. L1: each completes once, in order. L10: bytes are checked on request."""

from __future__ import annotations

import errno
import random
import time
from typing import TYPE_CHECKING

from dmaplane import _abi
from dmaplane._library import crc32c
from dmaplane._plane import PATHS, Capability
from dmaplane.testing import _pair, _rig
from dmaplane.testing._case import MakePlane, case_over_fabrics
from dmaplane.testing._pair import recv, send, write_imm
from dmaplane.testing._rig import MIB

if TYPE_CHECKING:
    from dmaplane._plane import Path
    from dmaplane.testing._pair import Side

SIZES = (1, 2, 7, 8, 63, 64, 65, 1000, 4095, 4096, 4097, 65537, 300_001, MIB - 5)
CHECKED = _abi.SUBMIT_CHECKSUM
VERIFIED = _abi.SUBMIT_CHECKSUM | _abi.SUBMIT_VERIFY


@case_over_fabrics("L1")
def message_arrives_exactly(make_plane: MakePlane, path: Path) -> None:
    """At odd places, whoever comes first, RECV or SEND; not a byte beside it changes."""
    chance = random.Random(11)
    with _pair.connected(make_plane, path) as (near, far):
        for one, other in ((near, far), (far, near)):
            source, target = one.memory(MIB + 512), other.memory(MIB + 512)
            source.scramble(3)
            for size in SIZES:
                at, to = chance.randrange(257), chance.randrange(257)
                target.bytes[: size + 512] = 0xEE
                receive_first = chance.random() < 0.5
                if receive_first:
                    other.submit(recv(target, size + 100, to, user_data=7))
                sent = one.run(send(source, size, at, user_data=5))[0]
                if not receive_first:
                    other.submit(recv(target, size + 100, to, user_data=7))
                came = other.wait()[0]
                for entry, operation, number in (
                    (sent, _abi.OP_SEND, 5),
                    (came, _abi.OP_RECV, 7),
                ):
                    assert int(entry["result"]) == 0, _rig.name_of(int(entry["result"]))
                    assert int(entry["operation"]) == operation
                    assert int(entry["user_data"]) == number
                    assert int(entry["length_bytes"]) == size
                    assert PATHS[int(entry["path"])] == path
                assert (target.bytes[to : to + size] == source.bytes[at : at + size]).all(), size
                assert (target.bytes[:to] == 0xEE).all(), f"before {size} bytes at {to}"
                assert (target.bytes[to + size : size + 512] == 0xEE).all(), f"after {size}"


@case_over_fabrics("L1")
def empty_message_arrives(make_plane: MakePlane, path: Path) -> None:
    with _pair.connected(make_plane, path) as (near, far):
        target = far.memory(64, fill=9)
        far.submit(recv(target, 64))
        assert near.result(send(near.memory(64), 0)) == 0
        came = far.wait()[0]
        assert (int(came["result"]), int(came["length_bytes"])) == (0, 0)
        assert (target.bytes[:64] == 9).all()


@case_over_fabrics("L1")
def messages_keep_their_order(make_plane: MakePlane, path: Path) -> None:
    """Batches and sizes as they come; RECVs sometimes ahead, sometimes behind."""
    chance = random.Random(12)
    total = 400
    with _pair.connected(make_plane, path) as (near, far):
        source, target = near.memory(total * 256), far.memory(total * 256)
        source.scramble(5)
        sizes = [chance.randint(1, 256) for _ in range(total)]
        sent = posted = 0
        came: list[int] = []
        while len(came) < total:
            batch = min(chance.randint(0, 12), total - sent, 32 - (sent - len(came)))
            if batch > 0:
                numbers = range(sent, sent + batch)
                near.submit(*(send(source, sizes[n], n * 256, user_data=n) for n in numbers))
                sent += batch
            batch = min(chance.randint(0, 12), total - posted, 32 - (posted - len(came)))
            if batch > 0:
                numbers = range(posted, posted + batch)
                far.submit(*(recv(target, 256, n * 256, user_data=n) for n in numbers))
                posted += batch
            near.sort()
            ready = min(sent, posted) - len(came)
            for entry in far.wait(ready):
                assert int(entry["result"]) == 0
                assert int(entry["user_data"]) == len(came)
                assert int(entry["length_bytes"]) == sizes[len(came)]
                came.append(int(entry["user_data"]))
        assert set(_rig.results(near.wait(total)).items()) == {(n, 0) for n in range(total)}
        for n, size in enumerate(sizes):
            at = n * 256
            assert (target.bytes[at : at + size] == source.bytes[at : at + size]).all(), n
            assert not target.bytes[at + size : at + 256].any(), n


@case_over_fabrics("L1")
def recv_that_is_too_small_fails_and_the_next_one_gets_it(
    make_plane: MakePlane, path: Path
) -> None:
    with _pair.connected(make_plane, path) as (near, far):
        source, target = near.memory(4096), far.memory(8192)
        source.scramble(8)
        for receive_first in (True, False):
            target.bytes[:] = 0
            small, large = recv(target, 999, user_data=1), recv(target, 1000, 4096, user_data=2)
            if receive_first:
                far.submit(small, large)
            assert near.result(send(source, 1000)) == 0
            if not receive_first:
                far.submit(small, large)
            assert _rig.results(far.wait(2)) == {1: -errno.EOVERFLOW, 2: 0}
            assert (target.bytes[4096:5096] == source.bytes[:1000]).all()
            assert not target.bytes[:4096].any(), "the RECV that failed was written"


@case_over_fabrics("L2")
def message_larger_than_the_window_is_refused(make_plane: MakePlane, path: Path) -> None:
    fields = {"window_slots": 4, "window_bytes": 5000}
    with _pair.connected(make_plane, path, far_fields=fields) as (near, far):
        source, target = near.memory(8192), far.memory(8192)
        source.scramble(1)
        assert near.result(send(source, 5001)) == -errno.EOVERFLOW
        far.submit(recv(target, 5000))
        assert near.result(send(source, 5000)) == 0
        assert int(far.wait()["result"][0]) == 0
        assert (target.bytes[:5000] == source.bytes[:5000]).all()


@case_over_fabrics("L1")
def both_directions_at_once(make_plane: MakePlane, path: Path) -> None:
    """Large and small ones at the same time each way; every byte of each is right."""
    with _pair.connected(make_plane, path) as (near, far):
        rounds, large, small = 6, 700_000, 100
        room = large + 16 * small
        ends = [(side, side.memory(room), side.memory(room)) for side in (near, far)]
        for n, (_, out, _) in enumerate(ends):
            out.scramble(20 + n)
        places = [(0, large), *((large + n * small, small) for n in range(12))]
        for _ in range(rounds):
            for side, out, into in ends:
                into.bytes[:] = 0
                side.submit(*(recv(into, size, at, user_data=1) for at, size in places))
                side.submit(*(send(out, size, at, user_data=2) for at, size in places))
            for side, _, _ in ends:
                done = side.wait(2 * len(places))
                assert not done["result"].any()
                assert sorted(done["user_data"].tolist()) == [1] * 13 + [2] * 13
            used = large + 12 * small
            assert (ends[0][1].bytes[:used] == ends[1][2].bytes[:used]).all()
            assert (ends[1][1].bytes[:used] == ends[0][2].bytes[:used]).all()


@case_over_fabrics("L1")
def who_sleeps_is_woken(make_plane: MakePlane, path: Path) -> None:
    """Whoever waits, or does not, at either end, for however long: what is sent is noticed."""
    chance = random.Random(13)
    with _pair.connected(make_plane, path) as (near, far):
        source, target = near.memory(4096), far.memory(4096)
        remote = near.import_region(far.region(target))
        for _ in range(150):
            far.submit(recv(target, 64, user_data=1))
            time.sleep(chance.choice((0, 0, 0.0005, 0.002)))
            entry = chance.choice((send(source, 64), write_imm(source, remote, 64, 1)))
            near.submit(entry)
            time.sleep(chance.choice((0, 0, 0.0005, 0.002)))
            first, second = chance.choice(((near, far), (far, near)))
            for side in (first, second):
                if side is far and entry["operation"] != _abi.OP_SEND:
                    far.event(_abi.EVENT_WRITE_IMM)
                    assert far.cancel(1) == (0, 1)
                    far.wait()
                else:
                    assert int(side.wait()["result"][0]) == 0


def _wrong_rows(near: Side) -> tuple[tuple[dict[str, int], tuple[int, ...]], ...]:
    memory = near.memory(4096)
    out, into = send(memory, 64), recv(memory, 64)
    wrong, absent = (errno.EINVAL,), (errno.ENOENT,)
    return (
        ({**out, "endpoint_id": 0}, (errno.ENOENT, errno.EINVAL)),
        ({**out, "endpoint_id": 4_000_000_000}, absent),
        ({**into, "endpoint_id": 4_000_000_000}, absent),
        ({**out, "source_id": 4_000_000_000}, absent),
        ({**into, "target_id": 4_000_000_000}, absent),
        ({**out, "target_id": memory.id}, wrong),
        ({**out, "target_offset": 1}, wrong),
        ({**into, "source_id": memory.id}, wrong),
        ({**into, "source_offset": 1}, wrong),
        ({**out, "immediate": 1}, wrong),
        ({**into, "immediate": 1}, wrong),
        ({**out, "checksum": 1}, wrong),
        ({**into, "checksum": 1}, wrong),
        ({**out, "flags": 1 << 15}, wrong),
        ({**out, "source_offset": 4090, "length_bytes": 7}, wrong),
        ({**into, "target_offset": 4090, "length_bytes": 7}, wrong),
        ({**out, "source_offset": (1 << 64) - 8}, (errno.EINVAL, errno.EOVERFLOW)),
        ({"operation": _abi.OP_COPY, "source_id": memory.id, "length_bytes": 1}, wrong),
        ({"operation": _abi.OP_NOP}, wrong),
    )


@case_over_fabrics("L1")
def wrong_message_completes_with_its_error(make_plane: MakePlane, path: Path) -> None:
    """What is wrong in itself is accepted, and the connection does not mind."""
    with _pair.connected(make_plane, path) as (near, far):
        for entry, wanted in _wrong_rows(near):
            got = near.result(entry)
            assert -got in wanted, f"{entry}: {_rig.name_of(got)}"
        source, target = near.memory(4096), far.memory(4096)
        far.submit(recv(target, 64))
        assert near.result(send(source, 64)) == 0
        assert int(far.wait()["result"][0]) == 0
        other = _rig.Rings(near.plane)
        row = _rig.rows_of({**send(source, 64), "endpoint_id": near.endpoint})
        got = int(other.run(row)["result"][0])
        assert -got in (errno.EINVAL, errno.ENOENT), "an endpoint of another channel"
        assert near.query().operations == 0


@case_over_fabrics("L10", needs=Capability.CHECKSUM)
def checksum_is_of_the_message(make_plane: MakePlane, path: Path) -> None:
    with _pair.connected(make_plane, path) as (near, far):
        source, target = near.memory(MIB), far.memory(MIB)
        source.scramble(9)
        for size in (1, 9, 4096, 70_001, MIB - 3):
            wanted = crc32c(bytes(source.bytes[:size]))
            far.submit(recv(target, MIB, flags=CHECKED, user_data=1))
            sent = near.run(send(source, size, flags=VERIFIED, checksum=wanted))[0]
            came = far.wait()[0]
            for entry in (sent, came):
                assert int(entry["result"]) == 0, _rig.name_of(int(entry["result"]))
                assert int(entry["flags"]) & _abi.COMPLETE_CHECKSUM, size
                assert int(entry["checksum"]) == wanted, size
        far.submit(recv(target, MIB))
        assert near.result(send(source, 4096, flags=CHECKED)) == 0
        assert int(far.wait()["result"][0]) == 0


@case_over_fabrics("L10", needs=Capability.CHECKSUM)
def message_that_does_not_match_its_checksum_is_ebadmsg(make_plane: MakePlane, path: Path) -> None:
    """Nobody is told that it is good; the next one is."""
    with _pair.connected(make_plane, path) as (near, far):
        source, target = near.memory(70_000), far.memory(70_000)
        source.scramble(10)
        for size in (9, 4096, 70_000):
            wanted = crc32c(bytes(source.bytes[:size]))
            far.submit(recv(target, 70_000, flags=CHECKED, user_data=1))
            bad = send(source, size, flags=VERIFIED, checksum=wanted ^ 1)
            assert near.result(bad) == -errno.EBADMSG
            good = send(source, size, flags=VERIFIED, checksum=wanted)
            assert near.result(good) == 0
            came = far.wait()[0]
            if int(came["result"]) == -errno.EBADMSG:
                # It was found out at this end: its RECV says so, and the next takes the good one.
                far.submit(recv(target, 70_000, flags=CHECKED, user_data=1))
                came = far.wait()[0]
            assert int(came["result"]) == 0, _rig.name_of(int(came["result"]))
            assert int(came["checksum"]) == wanted
            assert (target.bytes[:size] == source.bytes[:size]).all()


@case_over_fabrics("L1")
def chains_and_fences_hold_on_a_connection(make_plane: MakePlane, path: Path) -> None:
    link = _abi.SUBMIT_LINK
    with _pair.connected(make_plane, path) as (near, far):
        source, target = near.memory(65536), far.memory(65536)
        nop = {"operation": _abi.OP_NOP, "endpoint_id": 0}
        fence = {"operation": _abi.OP_FENCE, "endpoint_id": 0}
        far.submit(*(recv(target, 65536) for _ in range(3)))
        found = near.results(
            {**send(source, 64, flags=link), "source_id": 4_000_000_000, "user_data": 1},
            {**send(source, 64, flags=link), "user_data": 2},
            {**nop, "user_data": 3},
            {**send(source, 64, flags=link), "user_data": 4},
            {**nop, "user_data": 5},
        )
        assert found == {1: -errno.ENOENT, 2: -errno.ECANCELED, 3: -errno.ECANCELED, 4: 0, 5: 0}
        assert int(far.wait()["result"][0]) == 0
        big = send(source, 65536)
        order = near.run(
            {**big, "user_data": 1}, {**big, "user_data": 2}, {**fence, "user_data": 3}
        )
        assert int(order["user_data"][2]) == 3, "the fence overtook"
        assert not order["result"].any()
        assert not far.wait(2)["result"].any()
