# SPDX-License-Identifier: MIT
"""L7: a grant that was taken back is never honoured. L5: nothing touches the memory any more."""

from __future__ import annotations

import errno
import threading
import time
from typing import TYPE_CHECKING

from dmaplane import _abi
from dmaplane.testing import _pair, _rig
from dmaplane.testing._case import MakePlane, case_over_fabrics
from dmaplane.testing._pair import Meanwhile, key_of, read, write, write_imm
from dmaplane.testing._rig import MIB, expect

if TYPE_CHECKING:
    from collections.abc import Callable

    from dmaplane._plane import Path
    from dmaplane.testing._pair import Side

POISON = 0xA5


@case_over_fabrics("L7")
def region_of_an_earlier_generation_is_estale(make_plane: MakePlane, path: Path) -> None:
    """The same bytes of the same buffer, registered anew: the old grant is nothing to them."""
    with _pair.connected(make_plane, path) as (near, far):
        target, mine = far.memory(65536, fill=5), near.memory(65536, fill=6)
        got = near.memory(65536, fill=7)
        made = far.region(target)
        for round_ in range(10):
            stale, old_key = near.import_region(made), key_of(made)
            assert near.result(read(got, stale, 4096)) == 0
            far.revoke(made)
            made = far.region(target)
            target.bytes[:] = 50 + round_
            got.bytes[:] = 7
            for entry in (
                write(mine, stale, 65536),
                write_imm(mine, stale, 65536, 1),
                read(got, stale, 65536),
                read(got, stale, 1),
            ):
                answer = near.result(entry)
                assert answer == -errno.ESTALE, f"{entry}: {_rig.name_of(answer)}"
            assert (target.bytes == 50 + round_).all(), "a stale grant changed bytes"
            assert (got.bytes == 7).all(), "a stale grant read bytes"
            expect(near.try_import(old_key)[0], errno.ESTALE)
            expect(near.destroy_region(stale), 0)
        assert not far.events
        assert near.query().state == _abi.STATE_LIVE
        fresh = near.import_region(made)
        assert near.result(write(mine, fresh, 65536)) == 0
        assert (target.bytes == 6).all()


def _keeps_at_it(
    side: Side, entry: dict[str, int], busy: threading.Event, enough: threading.Event
) -> set[int]:
    """Submits @entry eight at a time until told, and then once more; the results there were."""
    found: set[int] = set()
    last = False
    while not last:
        last = enough.is_set()
        found |= {int(result) for result in side.run(*([entry] * 8))["result"]}
        busy.set()
    return found


def _while_in_use(near: Side, entry: dict[str, int], body: Callable[[], None]) -> set[int]:
    busy, enough = threading.Event(), threading.Event()
    with Meanwhile(lambda: _keeps_at_it(near, entry, busy, enough)) as working:
        busy.wait(_rig.PATIENCE_S)
        try:
            body()
        finally:
            enough.set()
        results: set[int] = working.answer()
    return results


@case_over_fabrics("L5")
def revoked_region_is_not_touched_any_more(make_plane: MakePlane, path: Path) -> None:
    """Writes pour in while it is drained; when that has returned not a byte changes."""
    length = 8 * MIB
    with _pair.connected(make_plane, path) as (near, far):
        target, mine = far.memory(length), near.memory(length, fill=6)
        for _ in range(8):
            made = far.region(target)
            remote = near.import_region(made)
            target.bytes[:] = 0

            def revoke(region: int = made.region_id) -> None:
                expect(far.destroy_region(region, drain_until=_rig.later()), 0)
                target.bytes[:] = POISON
                time.sleep(0.05)
                assert (target.bytes == POISON).all(), "bytes changed after the revocation"

            found = _while_in_use(near, write(mine, remote, length), revoke)
            assert found <= {0, -errno.ESTALE}, found
            assert -errno.ESTALE in found, "the revocation came too late for this test"
            assert near.result(write(mine, remote, 1)) == -errno.ESTALE
            expect(near.destroy_region(remote), 0)
        assert near.query().state == _abi.STATE_LIVE


@case_over_fabrics("L7")
def revoked_region_gives_nothing_away(make_plane: MakePlane, path: Path) -> None:
    """Reads pour out while it is drained; what is written there afterwards is not seen."""
    length = 4 * MIB
    with _pair.connected(make_plane, path) as (near, far):
        source, mine = far.memory(length, fill=5), near.memory(length)
        for _ in range(5):
            made = far.region(source, _abi.ACCESS_REMOTE_READ)
            remote = near.import_region(made)
            source.bytes[:] = 5

            def revoke(region: int = made.region_id) -> None:
                expect(far.destroy_region(region, drain_until=_rig.later()), 0)
                source.bytes[:] = POISON
                time.sleep(0.03)

            found = _while_in_use(near, read(mine, remote, length), revoke)
            assert found <= {0, -errno.ESTALE}, found
            assert -errno.ESTALE in found
            assert not (mine.bytes == POISON).any(), "bytes of after the revocation were read"
            expect(near.destroy_region(remote), 0)


@case_over_fabrics("L3")
def region_in_use_is_busy_or_gone_for_good(make_plane: MakePlane, path: Path) -> None:
    """Without DRAIN: EBUSY and unchanged, or 0 and then nothing touches it."""
    length = 32 * MIB
    with _pair.connected(make_plane, path) as (near, far):
        target, mine = far.memory(length), near.memory(length, fill=6)
        made = far.region(target)
        remote = near.import_region(made)

        def attempts() -> None:
            for _ in range(50):
                answer = far.destroy_region(made.region_id)
                if answer == 0:
                    break
                expect(answer, errno.EBUSY)
                query = _abi.RegionQuery(region_id=made.region_id)
                expect(_rig.ask(far.plane, _abi.REGION_QUERY, query), 0)
                assert query.state == _abi.STATE_LIVE
                time.sleep(0.001)
            else:
                expect(far.destroy_region(made.region_id, drain_until=_rig.later()), 0)
            target.bytes[:] = POISON
            time.sleep(0.05)
            assert (target.bytes == POISON).all(), "bytes changed after the revocation"

        found = _while_in_use(near, write(mine, remote, length), attempts)
        assert found <= {0, -errno.ESTALE}, found
        expect(_rig.destroy(far.plane, _abi.BUFFER_DESTROY, target.id), errno.EBUSY)  # mapped
        target.mapped.unmap()
        answer = _rig.destroy(far.plane, _abi.BUFFER_DESTROY, target.id, drain_until=_rig.later())
        expect(answer, 0)


@case_over_fabrics("L3")
def buffer_with_a_region_in_use_cannot_be_destroyed(make_plane: MakePlane, path: Path) -> None:
    length = 8 * MIB
    with _pair.connected(make_plane, path) as (near, far):
        target, mine = far.memory(length), near.memory(length, fill=6)
        made = far.region(target)
        remote = near.import_region(made)

        def attempts() -> None:
            for _ in range(20):
                expect(_rig.destroy(far.plane, _abi.BUFFER_DESTROY, target.id), errno.EBUSY)
                expect(_rig.destroy(near.plane, _abi.BUFFER_DESTROY, mine.id), errno.EBUSY)

        assert _while_in_use(near, write(mine, remote, length), attempts) == {0}
        assert (target.bytes == 6).all()


@case_over_fabrics("L7")
def keys_of_a_plane_that_ended_are_refused_by_the_next(make_plane: MakePlane, path: Path) -> None:
    """It listens where the old one did and registers the same sizes in the same order."""
    with make_plane() as one:
        rings = _rig.Rings(one)
        first = make_plane()
        near, far = _pair.join((one, rings), (first, _rig.Rings(first)), path)
        old_key = key_of(far.region(far.memory(4096, fill=5)))
        expect(near.try_import(old_key)[0], 0)
        first.close()
        near.event(_abi.EVENT_ENDPOINT_LOST)
        with make_plane() as second:
            again, behind = _pair.join((one, rings), (second, _rig.Rings(second)), path)
            target = behind.memory(4096, fill=6)
            new_key = key_of(behind.region(target))
            assert new_key != old_key
            expect(again.try_import(old_key)[0], errno.ESTALE, errno.EACCES)
            answer, imported = again.try_import(new_key)
            expect(answer, 0)
            assert again.result(write(again.memory(64, fill=7), imported.region_id, 64)) == 0
            assert (target.bytes[:64] == 7).all()
