# SPDX-License-Identifier: MIT
"""Generations: a reader who overlaps a change notices, in every order and in threads (L7)."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from small_pool import Clock

import dmaplane
from dmaplane.kv import Lease, Pool

Ending = Callable[[Pool, Lease, Clock], None]


def _release(pool: Pool, lease: Lease, clock: Clock) -> None:
    lease.release()


def _expire(pool: Pool, lease: Lease, clock: Clock) -> None:
    clock.now += 1000
    pool.sweep()


def _abort(pool: Pool, lease: Lease, clock: Clock) -> None:
    lease.quarantine("peer", why="test")


ENDINGS: list[Ending] = [_release, _expire, _abort]


class Story:
    """A block published with 1, filled with 2, published, ended, leased again, filled with 3.

    Step by step, so that a reader can come between any two of them.
    """

    steps = 11

    def __init__(self, pool: Pool, clock: Clock, ending: Ending) -> None:
        self.pool = pool
        self.clock = clock
        self.ending = ending
        self.lease = pool.lease(1, holder="first", seconds=100)
        self.block = int(self.lease.blocks[0])
        self._half(1, 0)
        self._half(1, -1)
        self.lease.publish()
        self.published: int | None = 1
        self.done = 0

    def _half(self, value: int, at: int) -> None:
        self.pool.block(0, self.block).flat[at] = value

    def _leave(self) -> None:
        self.lease.release()
        self.pool.let_go("peer")

    def step(self) -> None:
        """The next thing that happens."""
        if self.done in (0, 4):
            self.published = None
        [
            self.lease.fill,
            lambda: self._half(2, 0),
            lambda: self._half(2, -1),
            self.lease.publish,
            lambda: self.ending(self.pool, self.lease, self.clock),
            self._leave,
            self._take_again,
            self.lease.fill,
            lambda: self._half(3, 0),
            lambda: self._half(3, -1),
            self.lease.publish,
        ][self.done]()
        self.done += 1
        self.published = {4: 2, self.steps: 3}.get(self.done, self.published)

    def _take_again(self) -> None:
        self.lease = self.pool.lease(1, holder="second")
        assert self.lease.blocks[0] == self.block


def _read_during(story: Story, moments: tuple[int, ...]) -> tuple[int | None, list[int], bool]:
    """Stamp, one half, the other, check, each at its moment: what was published at the first,
    what was read, and whether the reader noticed that it is not to be used."""

    def until(moment: int) -> None:
        while story.done < moment:
            story.step()

    until(moments[0])
    published = story.published
    try:
        stamp = story.pool.stamp([story.block])
    except dmaplane.StaleEpochError:
        return published, [], True
    halves = []
    for half, moment in enumerate(moments[1:3]):
        until(moment)
        halves.append(int(story.pool.block(0, story.block).flat[-half]))
    until(moments[3])
    try:
        story.pool.check([story.block], stamp)
    except dmaplane.StaleEpochError:
        return published, halves, True
    return published, halves, False


@pytest.mark.parametrize("ending", ENDINGS)
def test_reader_that_overlaps_a_change_notices_in_every_order(
    pool: Pool, clock: Clock, ending: Ending
) -> None:
    accepted: list[int | None] = []
    for moments in itertools.combinations_with_replacement(range(Story.steps + 1), 4):
        story = Story(pool, clock, ending)
        published, halves, noticed = _read_during(story, moments)
        if not noticed:
            assert halves == [published] * 2, f"stale bytes were taken for good at {moments}"
            accepted.append(published)
        story._leave()
        pool.audit()
    assert accepted == [1, 2, 3], "each of the three can be read, undisturbed"


def test_stamp_of_a_block_that_is_not_published_is_refused(pool: Pool) -> None:
    with pool.lease(3, holder="a") as lease:
        with pytest.raises(dmaplane.StaleEpochError, match=f"block {lease.blocks[0]} is not pub"):
            pool.stamp(lease.blocks)
        lease.publish()
        stamp = pool.stamp(lease.blocks)
        assert (stamp == lease.stamp).all()
        assert not (stamp % 2).any()
        pool.check(lease.blocks, stamp)
        lease.fill()
        assert (lease.stamp % 2 == 1).all()
        lease.fill()  # the same filling goes on
        lease.publish()
        with pytest.raises(dmaplane.StaleEpochError, match="changed while it was read"):
            pool.check(lease.blocks, stamp)


def test_generation_of_a_tenant_is_not_that_of_the_next_one(pool: Pool) -> None:
    with pool.lease(16, holder="a") as lease:
        unpublished = lease.stamp
        pool.check(lease.blocks, unpublished)
    with pool.lease(16, holder="b") as lease:
        assert (lease.stamp % 2 == 1).all()
        with pytest.raises(dmaplane.StaleEpochError, match="changed"):
            pool.check(lease.blocks, unpublished)


def test_blocks_of_another_pool_are_refused(pool: Pool) -> None:
    for wrong in ([16], [-1], [[0]], [0, 1 << 40]):
        with pytest.raises(dmaplane.InvalidError, match="blocks"):
            pool.stamp(wrong)
    with pytest.raises(dmaplane.InvalidError, match="stamp"):
        pool.check([1, 2], np.zeros(3, np.uint32))


WRITERS = 4


def _is_of_one_moment(copied: np.ndarray) -> bool:
    """Each block is whole, and those of one writer, who has one lease at a time, are alike."""
    blocks = copied.reshape(len(copied), -1)
    values = blocks[:, 0]
    whole = bool((blocks == values[:, None]).all())
    return whole and len(np.unique(values)) == len(np.unique(values % WRITERS))


def test_threads_that_read_while_others_write_never_take_a_mixture(pool: Pool) -> None:
    """Writers lease, fill, publish, refill and release; readers stamp, copy, check."""
    over = threading.Event()
    failures: list[str] = []
    known: dict[int, np.ndarray] = {}  # what a reader may try to read, by writer
    accepted, noticed = [0, 0], [0, 0]

    def write(seed: int) -> None:
        order, value = random.Random(seed), seed
        while not over.is_set():
            with pool.lease(order.randint(1, 4), holder=f"writer {seed}") as lease:
                known[seed] = lease.blocks
                layer = pool.layer(1)
                for _ in range(order.randint(1, 3)):
                    lease.fill()
                    value += WRITERS
                    for block in lease.blocks:
                        layer[block] = value % (1 << 20)  # exact in float32
                    lease.publish()
                    time.sleep(0)
                lease.check()

    def read(at: int) -> None:
        layer = pool.layer(1)
        while not over.is_set():
            for blocks in list(known.values()):
                try:
                    stamp = pool.stamp(blocks)
                except dmaplane.StaleEpochError:
                    continue
                copied = np.zeros((len(blocks), *layer.shape[1:]), layer.dtype)
                for row, block in zip(copied, blocks, strict=True):
                    row[...] = layer[block]
                    time.sleep(0)  # somebody else's turn
                try:
                    pool.check(blocks, stamp)
                except dmaplane.StaleEpochError:
                    noticed[at] += 1
                    continue
                accepted[at] += 1
                if not _is_of_one_moment(copied):
                    failures.append(f"{copied[:, 0, 0, 0, 0]} of blocks {blocks}")

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(WRITERS)]
    threads += [threading.Thread(target=read, args=(at,)) for at in range(2)]
    for thread in threads:
        thread.start()
    began = time.monotonic()
    while min(accepted + noticed) < 50 and not failures and time.monotonic() - began < 60:
        over.wait(0.05)
    over.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert min(accepted + noticed) >= 50, "readers and writers did not meet"
    assert pool.audit().free == 16
