# SPDX-License-Identifier: MIT
"""Pools and leases: who has what, and nothing is freed under anybody (L3)."""

from __future__ import annotations

import random
import threading
import warnings
from collections.abc import Callable

import numpy as np
import pytest
from small_pool import SMALL, Clock

import dmaplane
from dmaplane.kv import Account, Pool
from dmaplane.kv._blocks import Blocks
from dmaplane.kv._lease import Tenure

# ---- leases


def test_lease_gives_blocks_that_nobody_else_has(pool: Pool) -> None:
    with pool.lease(5, holder="a") as first, pool.lease(11, holder="b") as second:
        assert sorted([*first.blocks, *second.blocks]) == list(range(16))
        assert pool.account() == Account(16, 0, 16, 0)
    assert pool.account() == Account(16, 16, 0, 0)


def test_blocks_of_a_lease_rise_and_cannot_be_changed(pool: Pool) -> None:
    leases = [pool.lease(2, holder="a") for _ in range(8)]
    for lease in reversed(leases):
        assert lease.is_consecutive
        lease.release()
    for lease in leases[::3]:
        lease.release()  # once more does nothing
    with pool.lease(3, holder="b") as kept, pool.lease(9, holder="c") as lease:
        assert kept.blocks.tolist() == [0, 1, 2]
        assert (np.diff(lease.blocks) > 0).all()
        assert lease.blocks.dtype == np.int64
        with pytest.raises(ValueError, match="read-only"):
            lease.blocks[0] = 7


@pytest.mark.parametrize("count", [1, 3, 20, 400, 1000])
def test_blocks_rise_in_whatever_order_they_were_given_back(count: int) -> None:
    books, order = Blocks(1000), random.Random(count)
    singles = [books.take(1) for _ in range(1000)]
    order.shuffle(singles)
    for one in singles:
        books.end(one, quarantined=False)
    for _ in range(2):
        taken = books.take(count)
        assert len(taken) == count
        assert (np.diff(taken) > 0).all()
        books.audit()
        books.end(taken, quarantined=False)
    assert books.take(1000).tolist() == list(range(1000))


def test_lease_that_does_not_fit_now_says_what_the_account_is(pool: Pool) -> None:
    with pool.lease(10, holder="a"):
        with pytest.raises(dmaplane.LimitError, match="6 are free") as caught:
            pool.lease(7, holder="request 7")
        assert "16 blocks = 6 free + 10 leased + 0 quarantined" in str(caught.value)
        assert "request 7" in str(caught.value)
    with pytest.raises(dmaplane.InvalidError, match=r"1 \.\. 16"):
        pool.lease(17, holder="a")  # never fits: another kind of error


@pytest.mark.parametrize("count", [0, -1])
def test_lease_of_nothing_is_refused(pool: Pool, count: int) -> None:
    with pytest.raises(dmaplane.InvalidError, match="count"):
        pool.lease(count, holder="a")


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan"), float("inf"), 1e12])
def test_times_that_are_none_are_refused(pool: Pool, seconds: float) -> None:
    with pytest.raises(dmaplane.InvalidError, match="seconds"):
        pool.lease(1, holder="a", seconds=seconds)
    with pool.lease(1, holder="a") as lease:
        with pytest.raises(dmaplane.InvalidError, match="seconds"):
            lease.renew(seconds)
        with pytest.raises(dmaplane.InvalidError, match="why"):
            lease.quarantine("who", why="x" * 1000)
        assert lease.state == "live"


@pytest.mark.parametrize("text", ["x" * 257, "two\nlines", "\x1b[2J"])
def test_names_that_would_spoil_a_log_are_refused(pool: Pool, text: str) -> None:
    with pytest.raises(dmaplane.InvalidError, match="holder"):
        pool.lease(1, holder=text)
    with pytest.raises(dmaplane.InvalidError, match="trace"):
        pool.lease(1, holder="a", trace=text)
    assert pool.account().free == 16


def test_expired_lease_says_so_to_whoever_uses_it(pool: Pool, clock: Clock) -> None:
    with pool.lease(4, holder="decode 9", seconds=10) as lease:
        lease.publish()
        clock.now += 9
        lease.renew(2)
        lease.renew(0.5)  # not shorter
        clock.now += 1.5
        assert not lease.expired
        lease.check()
        clock.now += 0.5
        assert lease.expired
        assert lease.state == "live", "nobody has looked"
        uses: list[Callable[[], object]] = [
            lease.check,
            lease.fill,
            lease.publish,
            lambda: lease.renew(100),
            lambda: lease.lend("x"),
        ]
        for use in uses:
            with pytest.raises(dmaplane.StaleEpochError, match="decode 9 has ended: expired"):
                use()
        assert lease.state == "expired"
        assert pool.account() == Account(16, 12, 0, 4), "the holder has not let go"
    assert pool.account() == Account(16, 16, 0, 0)


def test_clock_alone_frees_nothing(pool: Pool, clock: Clock) -> None:
    leases = [pool.lease(2, holder="a", seconds=1 + at) for at in range(3)]
    kept = pool.lease(2, holder="b")
    clock.now += 2.5
    assert pool.sweep() == 2
    clock.now += 1000
    assert pool.sweep() == 1
    assert pool.sweep() == 0
    assert pool.account() == Account(16, 8, 2, 6)
    for lease in [*leases, kept]:
        lease.release()


def test_renewed_lease_expires_when_its_new_time_has_passed(pool: Pool, clock: Clock) -> None:
    with pool.lease(2, holder="a", seconds=1) as lease:
        lease.renew(10)
        clock.now += 5
        assert pool.sweep() == 0
        clock.now += 5
        assert pool.sweep() == 1
        assert lease.state == "expired"


def test_taking_a_lease_notices_those_that_have_expired(pool: Pool, clock: Clock) -> None:
    with pool.lease(4, holder="a", seconds=1) as old:
        clock.now += 1
        with pool.lease(1, holder="b"):
            assert old.state == "expired"
            assert pool.account() == Account(16, 11, 1, 4)


def test_what_is_lent_is_not_free_before_the_borrower_lets_go(pool: Pool) -> None:
    sender, connection = object(), ("peer", 3)
    with pool.lease(4, holder="prefill") as lease:
        lease.lend(sender)
        lease.lend(connection)
        lease.lend(connection)
    assert lease.state == "released"
    assert pool.account() == Account(16, 12, 0, 4)
    assert lease.let_go(connection) == 0
    assert pool.let_go(sender) == 0
    assert pool.let_go(sender) == 0, "he has let go already"
    assert pool.leases()[0].who == ("('peer', 3)",)
    assert lease.let_go(connection) == 4
    assert lease.let_go(connection) == 0
    assert pool.account() == Account(16, 16, 0, 0)
    with pytest.raises(dmaplane.StaleEpochError, match="ended"):
        lease.lend(sender)


def test_live_lease_stays_live_when_a_borrower_lets_go(pool: Pool) -> None:
    with pool.lease(4, holder="prefill") as lease:
        lease.lend("peer")
        assert pool.let_go("peer") == 0
        lease.check()
        assert pool.account().leased == 4


def test_death_of_a_connection_lets_go_of_all_it_was_lent_and_of_nothing_else(pool: Pool) -> None:
    leases = [pool.lease(3, holder=f"request {at}") for at in range(4)]
    for at, lease in enumerate(leases):
        lease.lend("dies" if at % 2 else "lives")
        lease.release()
    assert pool.let_go("dies") == 6
    assert pool.account() == Account(16, 10, 0, 6)
    assert pool.let_go("lives") == 6


def test_aborted_lease_waits_for_its_holder_and_for_who_may_write(pool: Pool) -> None:
    with pool.lease(4, holder="request 5", trace="t5") as lease:
        lease.fill()
        lease.quarantine("connection 3", why="cancelled by the client")
        assert lease.state == "aborted"
        with pytest.raises(dmaplane.StaleEpochError, match="cancelled by the client"):
            lease.publish()
        (row,) = pool.leases()
        assert (row.holder, row.trace, row.blocks) == ("request 5", "t5", 4)
        assert row.who == ("request 5", "connection 3")
        assert row.why == "cancelled by the client"
        assert pool.let_go("connection 3") == 0, "an engine may be writing"
    assert pool.account() == Account(16, 16, 0, 0)
    with pytest.raises(dmaplane.StaleEpochError, match="blocks are free"):
        lease.quarantine("connection 3", why="too late")


def test_lease_that_is_forgotten_warns_and_stays_in_the_books(pool: Pool) -> None:
    lease = pool.lease(3, holder="careless", trace="t9")
    kept = [lease]
    del lease
    with pytest.warns(ResourceWarning, match="careless, 3 blocks.*never released"):
        kept.clear()
    assert pool.account().leased == 3
    assert pool.leaks(-1)[0].trace == "t9"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pool.lease(1, holder="careful").release()


def test_leaks_are_the_old_ones(pool: Pool, clock: Clock) -> None:
    with pool.lease(1, holder="old", seconds=300):
        clock.now += 100
        with pool.lease(2, holder="young"):
            clock.now += 10
            assert [row.holder for row in pool.leases()] == ["old", "young"]
            assert [row.holder for row in pool.leaks(older_than=60)] == ["old"]
            (old,) = pool.leaks(60)
            assert (old.age_seconds, old.expires_in, old.state) == (110, 190, "live")


def test_leases_that_come_and_go_leave_nothing_behind(pool: Pool) -> None:
    for _ in range(2000):
        with pool.lease(1, holder="a", seconds=1e6) as lease:
            lease.lend("b")
            lease.let_go("b")
    assert len(pool._due) < 100
    assert not pool._tenures
    assert not pool._borrowers


def test_audit_finds_books_that_do_not_agree(pool: Pool) -> None:
    books = pool._blocks
    with pool.lease(2, holder="a") as lease:
        books._states[0] = 0
        with pytest.raises(AssertionError, match="counted"):
            pool.audit()
        with pytest.raises(AssertionError, match="block 0 is free, not leased"):
            books.end(lease.blocks, quarantined=False)
        books._states[0] = 1
        books._generations[0] += 2
        with pytest.raises(AssertionError, match="changed under it"):
            lease.check()
        books._generations[0] -= 2
        books._free[0] = 14
        with pytest.raises(AssertionError, match="stack"):
            pool.audit()
        books._free[0] = 15
        books._generations[15] += 1
        with pytest.raises(AssertionError, match="published that is not leased"):
            pool.audit()
        books._generations[15] += 1
        books._counts[0] += 1
        with pytest.raises(AssertionError, match="does not balance"):
            books.end(lease.blocks[:1], quarantined=True)
        books._counts[0] -= 1
        books.move(lease.blocks[:1], before=2, after=1)
        lease.lend("peer")
        pool._borrowers["peer"].add(99)
        pool._tenures[99] = Tenure(99, "x", "", lease.blocks[:0], 0, 0, lease.stamp[:0])
        with pytest.raises(AssertionError, match="not lent to it"):
            pool.audit()
        pool._borrowers["peer"].remove(99)
        pool._tenures[99].blocks = lease.blocks
        with pytest.raises(AssertionError, match="leases have 4"):
            pool.audit()
        del pool._tenures[99]
        pool.let_go("peer")


# ---- the pool


def test_pool_is_one_buffer_of_layers(plane: dmaplane.Plane) -> None:
    with Pool(plane, SMALL, 6) as pool:
        assert len(pool.buffer) == SMALL.pool_bytes(6)
        assert [pool.offset(n) for n in range(2)] == [0, SMALL.layer_bytes(6)]
        with pytest.raises(dmaplane.InvalidError, match=r"0 \.\. 1"):
            pool.offset(2)
        assert plane.statistics().buffers == 1
    assert plane.statistics().buffers == 0


def test_pool_goes_where_it_is_asked_to(plane: dmaplane.Plane) -> None:
    with Pool(plane, SMALL, 4, node=0, huge="prefer") as pool:
        assert pool.buffer.placement.pages > 0
        assert pool.buffer.kind in ("huge", "pages")


@pytest.mark.parametrize("blocks", [0, -3, 1 << 50])
def test_pool_of_an_impossible_size_is_refused(plane: dmaplane.Plane, blocks: int) -> None:
    with pytest.raises(dmaplane.InvalidError, match="blocks"):
        Pool(plane, SMALL, blocks)
    assert plane.statistics().buffers == 0


def test_closed_pool_ends_its_leases(plane: dmaplane.Plane) -> None:
    with Pool(plane, SMALL, 8) as pool:
        live, lent = pool.lease(2, holder="a"), pool.lease(3, holder="b")
        lent.lend("peer")
        lent.release()
    assert live.state == "closed"
    assert pool.account() == Account(8, 8, 0, 0)
    for use in (live.check, live.fill, lambda: pool.lease(1, holder="c"), lambda: pool.layer(0)):
        with pytest.raises(dmaplane.ClosedError, match="this pool is closed"):
            use()
    live.quarantine("peer", why="its connection ends after the pool")
    live.release()
    assert pool.let_go("peer") == lent.let_go("peer") == 0
    pool.close()
    assert pool.closed


def test_pool_of_a_closed_plane_can_be_closed() -> None:
    plane = dmaplane.open(plane="embedded")
    pool = Pool(plane, SMALL, 8)
    lease = pool.lease(1, holder="a")
    plane.close()
    with pytest.raises(dmaplane.ClosedError, match="plane is closed"):
        pool.layer(0)
    pool.close()
    assert lease.state == "closed"


def test_many_threads_leave_the_books_in_order(plane: dmaplane.Plane) -> None:
    clock = Clock()
    with Pool(plane, SMALL, 64, clock=clock) as pool:

        def work(seed: int) -> None:
            order = random.Random(seed)
            for turn in range(300):
                try:
                    lease = pool.lease(order.randint(1, 24), holder=str(seed), seconds=5)
                except dmaplane.LimitError:
                    clock.now += 0.1
                    continue
                try:
                    lease.lend(("peer", seed))
                    if turn % 3 == 0:
                        lease.quarantine(("peer", seed), why="test")
                    lease.renew(5)
                except dmaplane.StaleEpochError:
                    pass
                lease.release()
                pool.let_go(("peer", seed))
                pool.sweep()

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            pool.audit()
        for thread in threads:
            thread.join()
        assert pool.audit() == Account(64, 64, 0, 0)
