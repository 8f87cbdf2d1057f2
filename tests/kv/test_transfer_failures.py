# SPDX-License-Identifier: MIT
"""Transfers that fail: everybody is told why, others are unharmed, nothing stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import sys
from pathlib import Path
from typing import Any

import pytest

import dmaplane
from dmaplane.kv import Incoming, Layout, Lease, Outgoing, Pool, Receiver, Sender
from dmaplane.kv import _sums as sums

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "endpoint"))
from couple import HND, LAYERS, NHD, Couple, couple, endpoints, failures, run, several, under_way
from tap import Tap

# ---- abort


@pytest.mark.parametrize("path", ["shm", "tcp"])
@pytest.mark.parametrize("who", ["sender", "receiver"])
@pytest.mark.parametrize("ready", range(LAYERS + 1))
def test_abort_at_any_stage_frees_both_sides(path: str, who: str, ready: int) -> None:
    async def main() -> None:
        async with couple(path, target=HND if ready % 2 else NHD) as both:
            async with under_way(both) as (outgoing, incoming, lease):
                for layer in range(ready):
                    outgoing.ready(layer)
                if 0 < ready < LAYERS:
                    await incoming.layer(ready - 1)
                aborted: Outgoing | Incoming = outgoing if who == "sender" else incoming
                await aborted.abort("not wanted any more")
                if ready == LAYERS and outgoing._outcome.failure is None:
                    return  # it was done before
                for failure in await failures(outgoing, incoming):
                    assert failure.transfer == "under way"
                    assert failure.cause == "not wanted any more"
                with pytest.raises(dmaplane.StaleEpochError):
                    lease.check()
            await both.settles()
            await both.moves()
            await both.settles()

    run(main())


def test_abort_before_it_was_accepted_or_even_announced() -> None:
    async def main() -> None:
        async with couple(transfers=1) as both:
            async with under_way(both, accept=False) as (outgoing, incoming, lease):
                with both.sender.pool.lease(1, holder="second") as second:
                    queued = both.sender.send("queued", second, 5)
                    await queued.abort("changed my mind")
                    with pytest.raises(dmaplane.TransferError, match="queued: changed my mind"):
                        await queued.done()
                await outgoing.abort("never mind")
                await failures(outgoing, incoming)
                with pytest.raises(dmaplane.TransferError, match="never mind"):
                    await incoming.accept(lease)
                lease.check()
            await both.settles()
            await both.moves()

    run(main())


@pytest.mark.parametrize("path", ["shm", "tcp"])
def test_abort_returns_when_nothing_reads_the_source_any_more(path: str) -> None:
    async def main() -> None:
        async with couple(path) as both:
            async with under_way(both) as (outgoing, incoming, _):
                while outgoing._route is None:
                    await asyncio.sleep(0.001)
                for layer in range(LAYERS):
                    outgoing.ready(layer)
                both.sender._pump()
                assert outgoing._postings  # on their way: no turn has heard of their end
                await outgoing.abort("enough")
                assert not outgoing._postings
                await failures(outgoing, incoming)
            await both.settles()

    run(main())


def test_refusal_has_its_reason_at_the_sender() -> None:
    async def main() -> None:
        async with couple() as both:
            async with under_way(both, accept=False) as (outgoing, incoming, _):
                incoming.refuse("no room today")
                with pytest.raises(dmaplane.TransferError, match="no room today"):
                    await outgoing.done()
            await both.settles()
            await both.moves()

    run(main())


def test_abort_of_one_leaves_the_others_alone() -> None:
    async def main() -> None:
        async with couple("tcp", window=4) as both:
            async with several(both, [0] * 4) as (out, into):
                for each in out:
                    for layer in range(LAYERS):
                        each.ready(layer)
                await into[0].layer(0)
                await asyncio.gather(out[1].abort("enough"), into[2].abort("enough"))
                for number in (0, 3):
                    await into[number].complete()
                    await out[number].done()
                    assert both.same(out[number], into[number])
            await both.settles()

    run(main())


# ---- flipped bits


@pytest.mark.parametrize("path", ["shm", "tcp"])
def test_flipped_bit_in_the_senders_memory_is_found_and_named(path: str) -> None:
    async def main() -> None:
        async with couple(path) as both:
            for byte in range(0, 9000, 450):
                async with under_way(both, source_sums=True) as (outgoing, incoming, _):
                    outgoing.ready(0)
                    outgoing.ready(1)
                    place = both.sender.pool.offset(1) + int(outgoing._lease.blocks[0]) * (
                        NHD.block_bytes
                    )
                    both.sender.pool.buffer.numpy()[place + byte] ^= 1 << byte % 8
                    for failure in await failures(outgoing, incoming):
                        assert "layer 1 changed in the sender's memory" in failure.cause
            await both.settles()

    run(main())


@pytest.mark.parametrize("path", ["shm", "tcp"])
@pytest.mark.parametrize("target", [NHD, HND])
def test_flipped_bit_in_the_receivers_memory_is_found_and_named(
    path: str, target: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with couple(path, target=target) as both:
            honest = sums.of_memory
            for bit in range(0, 8 * 16384, 8000):

                def flipped(
                    address: int, offsets: Any, lengths: Any, starts: Any, bit: int = bit
                ) -> Any:
                    memory = both.receiver.pool.buffer.numpy()
                    within = bit // 8 % int(lengths[0])
                    memory[int(offsets[0]) + within] ^= 1 << bit % 8
                    return honest(address, offsets, lengths, starts)

                monkeypatch.setattr(sums, "of_memory", flipped)
                async with under_way(both, ready=True) as (outgoing, incoming, _):
                    for failure in await failures(outgoing, incoming):
                        assert "changed in the receiver's memory" in failure.cause
                        assert failure.chunk is not None
            monkeypatch.setattr(sums, "of_memory", honest)
            await both.moves()
            await both.settles()

    run(main())


def test_without_checksums_nobody_would_have_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the two tests above find is found by checksums and by nothing else."""

    async def main() -> None:
        async with couple() as both:
            async with under_way(both, checksum=False) as (outgoing, incoming, lease):
                for layer in range(LAYERS - 1):
                    outgoing.ready(layer)
                await incoming.layer(0)
                place = int(lease.blocks[0]) * NHD.block_bytes
                both.receiver.pool.buffer.numpy()[place] ^= 1
                outgoing.ready(LAYERS - 1)
                await incoming.complete()
                await outgoing.done()
                assert not both.same(outgoing, incoming)

    run(main())


@pytest.mark.parametrize("after", [10_000, 60_000, 130_000, 260_000])
def test_flipped_bit_on_the_wire_is_found_and_named(after: int) -> None:
    async def main() -> None:
        with contextlib.ExitStack() as stack:
            taps: list[Tap] = []

            def between(bound: str) -> str:
                taps.append(stack.enter_context(contextlib.closing(Tap(bound))))
                return taps[0].address

            async with couple("tcp", address=between) as both:
                async with under_way(both) as (outgoing, incoming, _):
                    taps[0].spoil_after = len(taps[0].heard) + after
                    for layer in range(LAYERS):
                        outgoing.ready(layer)
                    told = await failures(outgoing, incoming)
                    assert taps[0].spoil_after is None
                    lost = both.sender.lost or both.receiver.lost
                    if lost is None:  # it was a byte of a chunk, not of what frames it
                        for failure in told:
                            assert "on the way to" in failure.cause
                            assert failure.chunk is not None
                        await both.moves()
            await both.settles()

    run(main())


# ---- leases, connections


@pytest.mark.parametrize("path", ["shm", "tcp"])
def test_lease_that_expires_under_a_transfer_ends_it(path: str) -> None:
    async def main() -> None:
        async with couple(path) as both:
            source, target = both.sender.pool, both.receiver.pool
            with source.lease(8, holder="prefill") as from_:
                outgoing = both.sender.send("late", from_, 128, ready=False)
                incoming = await both.next()
                with target.lease(8, holder="decode", seconds=0.2) as to:
                    await incoming.accept(to)
                    outgoing.ready(0)
                    for failure in await failures(outgoing, incoming):
                        assert "lease of its destination has expired" in failure.cause
                    assert target.account().quarantined == 8
            await both.settles()
            await both.moves()

    run(main())


@pytest.mark.parametrize("path", ["shm", "tcp"])
@pytest.mark.parametrize("who", ["sender", "receiver"])
def test_close_while_a_transfer_is_in_flight_releases_it(path: str, who: str) -> None:
    async def main() -> None:
        async with couple(path) as both:
            async with under_way(both) as (outgoing, incoming, _):
                outgoing.ready(0)
                outgoing.ready(1)
                await incoming.layer(0)
                (both.sender if who == "sender" else both.receiver).close()
                for failure in await failures(outgoing, incoming):
                    assert failure.transfer == "under way"
                assert isinstance(failure.__cause__, dmaplane.DmaplaneError)
            await both.settles()
            with pytest.raises(dmaplane.DmaplaneError):
                await both.receiver.ask("more")

    run(main())


def test_layouts_that_no_plan_bridges_are_refused_at_both_ends() -> None:
    async def main() -> None:
        other = dataclasses.replace(NHD, head_size=64, dtype="float32")
        async with endpoints("tcp") as (near, far):
            with Pool(near.plane, NHD, 4) as ours, Pool(far.plane, other, 4) as theirs:
                told = await asyncio.gather(
                    Sender.open(near, ours), Receiver.open(far, theirs), return_exceptions=True
                )
                for each, mine in zip(told, (NHD, other), strict=True):
                    assert isinstance(each, dmaplane.LayoutError), each
                    fields = {field: (ours, theirs) for field, ours, theirs in each.differences}
                    assert fields.keys() == {"head_size", "dtype"}
                    assert fields["dtype"][0] == mine.dtype

    run(main())


def test_two_of_a_kind_do_not_meet() -> None:
    async def main() -> None:
        async with endpoints("shm") as (near, far):
            with Pool(near.plane, NHD, 4) as ours, Pool(far.plane, NHD, 4) as theirs:
                told = await asyncio.gather(
                    Sender.open(near, ours), Sender.open(far, theirs), return_exceptions=True
                )
                assert any(isinstance(each, dmaplane.ProtocolError) for each in told)
                assert all(isinstance(each, dmaplane.DmaplaneError) for each in told)

    run(main())


def test_nobody_there_is_a_time_out_that_says_so() -> None:
    async def main() -> None:
        async with endpoints("shm") as (near, _), contextlib.AsyncExitStack():
            with Pool(near.plane, NHD, 4) as pool:
                with pytest.raises(dmaplane.TimedOutError, match="open a Receiver there"):
                    await Sender.open(near, pool, timeout=0.1)

    run(main())


# ---- all of it at once


class Storm:
    """Many transfers; either side ends any of them at any time, as a seed says."""

    def __init__(self, both: Couple, seed: int) -> None:
        self.both = both
        self.chance = random.Random(seed)
        self.done: list[str] = []
        self.roomed: dict[str, asyncio.Future[Incoming]] = {}

    async def lease(self, pool: Pool, blocks: int) -> Lease:
        while True:
            try:
                return pool.lease(blocks, holder="storm")
            except dmaplane.LimitError:
                await asyncio.sleep(0.001)

    async def send(self, request: str) -> None:
        chance, sender = self.chance, self.both.sender
        tokens = chance.randrange(1, 600)
        layers = chance.choice([LAYERS, LAYERS, chance.randrange(LAYERS)])
        with await self.lease(sender.pool, sender.pool.layout.blocks_for(tokens)) as lease:
            outgoing = sender.send(
                request, lease, tokens, ready=False, priority=chance.randrange(3)
            )
            for layer in range(layers):
                outgoing.ready(layer)
                await asyncio.sleep(chance.choice([0, 0, 0.002]))
            if layers < LAYERS or chance.random() < 0.2:
                await outgoing.abort("storm")
            with contextlib.suppress(dmaplane.TransferError):
                await outgoing.done()
                self.done.append(request)

    async def room(self, request: str) -> None:
        """Asks with a room, which may be too small, or too late, or called off."""
        chance, receiver = self.chance, self.both.receiver
        self.roomed[request] = came = asyncio.get_running_loop().create_future()
        with await self.lease(receiver.pool, chance.randrange(1, 40)) as lease:
            await receiver.ask(request, lease=lease)
            await asyncio.sleep(chance.choice([0, 0.001, 0.05]))
            if chance.random() < 0.3 and not came.done():
                del self.roomed[request]
                await receiver.withdraw(request)
                return
            incoming = await came
            if incoming is None:
                await receiver.withdraw(request)
            elif incoming.blocks > len(lease):
                await self.receive(incoming)
            else:
                await self.arrive(incoming, lease)

    async def receive(self, incoming: Incoming) -> None:
        chance, pool = self.chance, self.both.receiver.pool
        if chance.random() < 0.1:
            incoming.refuse("storm")
            return
        with await self.lease(pool, incoming.blocks) as lease:
            await self.arrive(incoming, lease)

    async def arrive(self, incoming: Incoming, lease: Lease) -> None:
        chance = self.chance
        with contextlib.suppress(dmaplane.TransferError):
            await incoming.accept(lease)
            if chance.random() < 0.2:
                await asyncio.sleep(chance.choice([0, 0.001, 0.01]))
                await incoming.abort("storm")
            await incoming.complete()
            lease.pool.stamp(lease.blocks)
        assert incoming.ended


@pytest.mark.parametrize("path", ["shm", "tcp"])
@pytest.mark.parametrize("seed", range(3))
def test_whoever_ends_what_whenever_the_books_balance(path: str, seed: int) -> None:
    async def main() -> None:
        target = HND if seed % 2 else NHD
        async with couple(
            path, target=target, blocks=1024, transfers=6, window=1 + 7 * seed
        ) as both:
            storm = Storm(both, seed)
            asking = [asyncio.ensure_future(storm.room(f"r{number}")) for number in range(0, 40, 2)]
            if seed != 1:
                await asyncio.sleep(0.01)
            sending = [asyncio.ensure_future(storm.send(f"r{number}")) for number in range(40)]
            receiving: list[asyncio.Future[None]] = []

            async def accept() -> None:
                async for incoming in both.receiver:
                    room = storm.roomed.pop(incoming.request, None)
                    if room is not None:
                        room.set_result(incoming)
                    else:
                        receiving.append(asyncio.ensure_future(storm.receive(incoming)))

            accepting = asyncio.ensure_future(accept())
            await asyncio.gather(*sending)
            for room in storm.roomed.values():
                room.set_result(None)
            await asyncio.gather(*asking)
            accepting.cancel()
            await asyncio.gather(*receiving)
            assert 0 < len(storm.done) < 40
            await both.settles()
            assert not both.receiver._rooms
            assert both.sender.statistics().open == both.receiver.statistics().open == 0
            assert both.sender.statistics().chunks_under_way == 0
            await both.moves()

    run(main())
