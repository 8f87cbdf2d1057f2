# SPDX-License-Identifier: MIT
"""A pool against a small model: leases end in every way and order, and the books agree.

The model keeps a set of blocks for each lease and who has not let go of it. After every step
the pool's account, rows and generations have to be what follows from that, and no block may be
in two hands.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import dmaplane
from dmaplane.kv import Layout, Lease, Pool

BLOCKS = 12
LAYOUT = Layout(layers=2, kv_heads=1, head_size=2, dtype="int8", block_tokens=2)
NAMES = ("near", "far", ("connection", 3))
PEERS = st.sampled_from(NAMES)
WHICH = st.integers(0, 9)


class Held:
    """What the model knows of a lease."""

    def __init__(self, lease: Lease, until: float) -> None:
        self.lease = lease
        self.blocks = set(lease.blocks.tolist())
        self.until = until
        self.state = "live"
        self.held = True
        self.published = False
        self.borrowers: collections.Counter[object] = collections.Counter()

    @property
    def taken(self) -> bool:
        return self.state == "live" or self.held or bool(self.borrowers)


class PoolMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.plane = dmaplane.open(plane="embedded")
        self.pool = Pool(self.plane, LAYOUT, BLOCKS, clock=lambda: self.now)
        self.leases: list[Held] = []
        self.stamps: list[tuple[Held, np.ndarray, np.ndarray]] = []  # of what is published still
        self.stale: list[tuple[np.ndarray, np.ndarray]] = []

    def teardown(self) -> None:
        for one in self.leases:
            one.lease.release()
        for who in NAMES:
            self.pool.let_go(who)
        assert self.pool.audit().free == BLOCKS, "somebody let go, and it is not free"
        self.pool.close()
        self.plane.close()

    # ---- the model

    def _chosen(self, which: int) -> Held:
        return self.leases[which % len(self.leases)]

    def _taken(self) -> int:
        return sum(len(one.blocks) for one in self.leases if one.taken)

    def _unpublish(self, one: Held) -> None:
        one.published = False
        self.stale += [(blocks, stamp) for held, blocks, stamp in self.stamps if held is one]
        self.stamps = [entry for entry in self.stamps if entry[0] is not one]

    def _end(self, one: Held, state: str) -> None:
        one.state = state
        self._unpublish(one)

    def _expire(self, one: Held) -> bool:
        if one.state == "live" and one.until <= self.now:
            self._end(one, "expired")
            return True
        return False

    def _unless_ended(self, one: Held, act: Callable[[], None]) -> bool:
        """Does @act, which an ended lease has to refuse; True if it was not refused."""
        self._expire(one)
        if one.state == "live":
            act()
            return True
        with pytest.raises(dmaplane.StaleEpochError, match=f"lease {one.lease.id} .*ended"):
            act()
        return False

    # ---- what may happen

    @rule(count=st.integers(1, 5), seconds=st.one_of(st.none(), st.integers(1, 20)))
    def take(self, count: int, seconds: int | None) -> None:
        for one in self.leases:
            self._expire(one)
        free = BLOCKS - self._taken()
        if free < count:
            with pytest.raises(dmaplane.LimitError, match=f"{free} are free .*{BLOCKS} blocks ="):
                self.pool.lease(count, holder="x", seconds=seconds)
            return
        lease = self.pool.lease(count, holder=f"h{len(self.leases)}", trace="t", seconds=seconds)
        assert len(lease) == len(set(lease.blocks.tolist())) == count
        self.leases.append(Held(lease, math.inf if seconds is None else self.now + seconds))

    @rule(seconds=st.integers(1, 15))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def sweep(self) -> None:
        assert self.pool.sweep() == sum(self._expire(one) for one in self.leases)

    @precondition(lambda self: self.leases)
    @rule(which=WHICH, seconds=st.integers(1, 20))
    def renew(self, which: int, seconds: int) -> None:
        one = self._chosen(which)
        if self._unless_ended(one, lambda: one.lease.renew(seconds)):
            one.until = max(one.until, self.now + seconds)

    @precondition(lambda self: self.leases)
    @rule(which=WHICH)
    def fill(self, which: int) -> None:
        one = self._chosen(which)
        if self._unless_ended(one, one.lease.fill):
            self._unpublish(one)

    @precondition(lambda self: self.leases)
    @rule(which=WHICH)
    def publish(self, which: int) -> None:
        one = self._chosen(which)
        if one.published and not self._expire(one):
            with pytest.raises(dmaplane.InvalidError, match="fill"):
                one.lease.publish()
        elif self._unless_ended(one, one.lease.publish):
            one.published = True
            blocks = one.lease.blocks
            self.stamps.append((one, blocks, self.pool.stamp(blocks)))

    @precondition(lambda self: self.leases)
    @rule(which=WHICH, who=PEERS)
    def lend(self, which: int, who: object) -> None:
        one = self._chosen(which)
        if self._unless_ended(one, lambda: one.lease.lend(who)):
            one.borrowers[who] += 1

    @precondition(lambda self: self.leases)
    @rule(which=WHICH, who=PEERS)
    def borrower_of_one_lease_lets_go(self, which: int, who: object) -> None:
        one = self._chosen(which)
        before = one.taken
        if one.borrowers[who]:
            one.borrowers[who] -= 1
        one.borrowers += collections.Counter()  # without what is 0
        freed = len(one.blocks) if before and not one.taken else 0
        assert one.lease.let_go(who) == freed

    @rule(who=PEERS)
    def borrower_is_killed(self, who: object) -> None:
        freed = 0
        for one in self.leases:
            before = one.taken
            del one.borrowers[who]
            freed += len(one.blocks) if before and not one.taken else 0
        assert self.pool.let_go(who) == freed

    @precondition(lambda self: self.leases)
    @rule(which=WHICH, who=PEERS)
    def abort(self, which: int, who: object) -> None:
        one = self._chosen(which)
        if not one.taken:
            with pytest.raises(dmaplane.StaleEpochError, match="blocks are free"):
                one.lease.quarantine(who, why="too late")
            return
        one.lease.quarantine(who, why="on purpose")
        one.borrowers[who] += 1
        if one.state == "live":
            self._end(one, "aborted")

    @precondition(lambda self: self.leases)
    @rule(which=WHICH)
    def release(self, which: int) -> None:
        one = self._chosen(which)
        one.lease.release()
        one.held = False
        if one.state == "live":
            self._end(one, "released")

    # ---- what always holds

    @invariant()
    def account_is_what_follows(self) -> None:
        account = self.pool.audit()
        leased = sum(len(one.blocks) for one in self.leases if one.state == "live")
        assert account.balanced
        assert account.allocated == BLOCKS
        assert account.leased == leased
        assert account.quarantined == self._taken() - leased
        assert account == self.pool.account()

    @invariant()
    def no_block_is_in_two_hands(self) -> None:
        hands: collections.Counter[int] = collections.Counter()
        for one in self.leases:
            hands.update(one.blocks if one.taken else ())
        assert not hands or max(hands.values()) == 1

    @invariant()
    def rows_name_who_has_not_let_go(self) -> None:
        rows = {row.id: row for row in self.pool.leases()}
        taken = {one.lease.id: one for one in self.leases if one.taken}
        assert list(rows) == sorted(taken)
        for identity, one in taken.items():
            row = rows[identity]
            holder = [row.holder] if one.held else []
            assert sorted(row.who) == sorted([*holder, *map(str, one.borrowers)])
            assert (row.state, row.blocks) == (one.state, len(one.blocks))
            assert (row.why == "") == (one.state == "live")
        for one in self.leases:
            assert one.lease.state == one.state
            assert one.lease.expired == (
                one.state == "expired" or (one.state == "live" and one.until <= self.now)
            )

    @invariant()
    def stamps_hold_as_long_as_what_they_are_of(self) -> None:
        for _, blocks, stamp in self.stamps:
            self.pool.check(blocks, stamp)
        for blocks, stamp in self.stale[-20:]:
            with pytest.raises(dmaplane.StaleEpochError, match="changed while it was read"):
                self.pool.check(blocks, stamp)


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
