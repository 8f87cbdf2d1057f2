# SPDX-License-Identifier: MIT
"""Blocks that a peer may write to unasked are free only when he has said that he will not (L6)."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import dmaplane
from dmaplane.kv import _wire as wire
from dmaplane.kv._ask import Asks, Offer
from dmaplane.kv._wire import Kind

sys.path.insert(0, str(Path(__file__).parent))
from couple import HND, LAYERS, NHD, Couple, couple, run
from test_transfer_hostile import (
    ANNOUNCE,
    TOKENS,
    announce,
    ends,
    receiver_and_stranger,
    sums,
)

NEEDED = NHD.blocks_for(TOKENS)


@pytest.mark.parametrize("target", [NHD, HND])
@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize("path", ["shm", "tcp"])
def test_what_was_asked_for_with_a_room_comes_without_a_word_more(
    path: str, checksum: bool, target: dmaplane.kv.Layout
) -> None:
    async def main() -> None:
        async with couple(path, target=target) as both:
            theirs, ours = both.receiver.pool, both.sender.pool
            with theirs.lease(60, holder="decode") as to, ours.lease(60, holder="prefill") as lease:
                await both.receiver.ask("r", b"p", lease=to)
                ask = await anext(both.sender.asks())
                outgoing = both.sender.send(ask.request, lease, 700, checksum=checksum)
                await outgoing.done()  # before anybody here has looked at it
                incoming = await both.next()
                await incoming.accept(to)  # which changes nothing
                assert await incoming.complete() is to
                assert both.same(outgoing, incoming)
                to.check()
                theirs.stamp(to.blocks)
            await both.settles()
            await both.moves()

    run(main())


def test_who_is_written_to_makes_room_for_messages_later() -> None:
    """Who posts while much comes in may have to move it first, and sees no layer meanwhile."""

    async def main() -> None:
        async with couple("tcp") as both:
            pool, theirs = both.sender.pool, both.receiver.pool
            with theirs.lease(60, holder="decode") as to, pool.lease(60, holder="p") as lease:
                await both.receiver.ask("r", lease=to)
                ask = await anext(both.sender.asks())
                outgoing = both.sender.send(ask.request, lease, 700, checksum=False, ready=False)
                incoming = await both.next()
                assert len(both.receiver._unposted_recvs) == 1
                assert both.receiver._patience() == incoming._announce.layer_chunks
                for layer in range(LAYERS):
                    outgoing.ready(layer)
                await asyncio.gather(outgoing.done(), incoming.complete())
            await both.settles()
            assert not both.receiver._unposted_recvs
            assert not both.sender._unposted_recvs

    run(main())


def test_words_without_end_do_not_hold_back_what_was_announced() -> None:
    """ANNOUNCE goes ahead of its chunks; what is said after it does not."""

    async def main() -> None:
        async with couple() as both:
            heard = 0

            async def listen() -> None:
                nonlocal heard
                async for _ in both.receiver.says():
                    heard += 1

            async def talk() -> None:
                while True:
                    await both.sender.say(b"word")

            talkers = [asyncio.create_task(each) for each in (listen(), talk(), talk())]
            theirs, ours = both.receiver.pool, both.sender.pool
            with theirs.lease(60, holder="decode") as to, ours.lease(60, holder="prefill") as lease:
                for number in range(4):
                    while heard < 300 * (number + 1):  # more wait than may be under way
                        await asyncio.sleep(0)
                    await both.receiver.ask(f"r{number}", lease=to)
                    ask = await anext(both.sender.asks())
                    outgoing = both.sender.send(ask.request, lease, 700)
                    await asyncio.wait_for(outgoing.done(), 10)
                    incoming = await both.next()
                    await incoming.complete()
                    assert both.same(outgoing, incoming)
            for task in talkers:
                task.cancel()
            await asyncio.wait(talkers)

    run(main())


def test_room_that_is_too_small_is_given_back_and_the_transfer_waits() -> None:
    async def main() -> None:
        async with couple() as both:
            theirs, ours = both.receiver.pool, both.sender.pool
            with (
                theirs.lease(2, holder="decode") as small,
                ours.lease(9, holder="prefill") as lease,
            ):
                await both.receiver.ask("r", lease=small)
                ask = await anext(both.sender.asks())
                outgoing = both.sender.send(ask.request, lease, 9 * NHD.block_tokens)
                incoming = await both.next()
                small.check()  # it is whose it was, and nobody else's
                assert not both.receiver._rooms
                with theirs.lease(incoming.blocks, holder="decode") as to:
                    await incoming.accept(to)
                    await asyncio.gather(incoming.complete(), outgoing.done())
                    assert both.same(outgoing, incoming)
            await both.settles()

    run(main())


def test_an_ask_that_is_refused_costs_nothing() -> None:
    async def main() -> None:
        async with couple() as both:
            lease = await asked(both)
            spoken = list(both.receiver._spoken)
            with (
                both.receiver.pool.lease(1, holder="decode") as other,
                both.sender.pool.lease(1, holder="decode") as theirs,
            ):
                for request, given in (("r", other), ("s", lease), ("s", theirs)):
                    with pytest.raises(dmaplane.InvalidError):
                        await both.receiver.ask(request, lease=given)
            with pytest.raises(dmaplane.StaleEpochError):
                await both.receiver.ask("s", lease=other)
            assert both.receiver._spoken == spoken
            assert len(both.receiver._rooms) == 1
            await both.receiver.withdraw("r")
            lease.release()
            await both.settles()

    run(main())


def test_rooms_of_one_connection_have_a_bound() -> None:
    asks = Asks()
    for number in range(1, wire.ROOMS_MAX + 1):
        asks.offer(f"r{number}", Offer(number, np.array([0], dtype=np.uint32)), blocks_max=1 << 32)
    late = Offer(wire.ROOMS_MAX + 1, np.array([0], dtype=np.uint32))
    with pytest.raises(dmaplane.ProtocolError):
        asks.offer("late", late, blocks_max=1 << 32)


async def asked(both: Couple, blocks: int = 8) -> dmaplane.kv.Lease:
    """A lease that is the sender's to write to."""
    lease = both.receiver.pool.lease(blocks, holder="decode")
    await both.receiver.ask("r", lease=lease)
    await anext(both.sender.asks())
    return lease


def test_room_that_was_called_off_is_free_when_the_sender_has_let_go() -> None:
    async def main() -> None:
        async with couple() as both:
            lease = await asked(both)
            await both.receiver.withdraw("r")
            lease.release()
            account = both.receiver.pool.audit()
            assert (account.free, account.quarantined) == (account.allocated - 8, 8)
            await both.settles()
            with both.sender.pool.lease(8, holder="prefill") as source:
                with pytest.raises(dmaplane.TransferError, match="withdrawn"):
                    await both.sender.send("r", source, 100).done()
            await both.moves()
            await both.settles()

    run(main())


@pytest.mark.parametrize("path", ["shm", "tcp"])
def test_room_that_is_called_off_while_it_is_written_to(path: str) -> None:
    async def main() -> None:
        async with couple(path) as both:
            lease = await asked(both)
            with both.sender.pool.lease(8, holder="prefill") as source:
                outgoing = both.sender.send("r", source, 100, ready=False)
                outgoing.ready(0)
                await both.receiver.withdraw("r")  # its announcement is on the way
                lease.release()
                with pytest.raises(dmaplane.TransferError, match="withdrawn"):
                    await outgoing.done()
            await both.settles()
            await both.moves()

    run(main())


def test_who_has_not_looked_at_what_came_can_still_call_it_off() -> None:
    async def main() -> None:
        async with couple() as both:
            lease = await asked(both)
            with both.sender.pool.lease(8, holder="prefill") as source:
                outgoing = both.sender.send("r", source, 100, ready=False)
                while not both.receiver.statistics().waiting:
                    await asyncio.sleep(0.001)
                await both.receiver.withdraw("r")
                lease.release()
                with pytest.raises(dmaplane.TransferError, match="withdrawn"):
                    await outgoing.done()
            assert both.receiver.statistics().waiting == 0
            await both.settles()

    run(main())


def test_lease_that_ends_takes_its_room_along() -> None:
    async def main() -> None:
        async with couple() as both:
            pool = both.receiver.pool
            expires = pool.lease(4, holder="decode", seconds=0.05)
            released = pool.lease(4, holder="decode")
            await both.receiver.ask("expires", lease=expires)
            await both.receiver.ask("released", lease=released)
            released.release()
            while both.receiver._rooms:
                await asyncio.sleep(0.01)
            expires.release()
            await both.settles()

    run(main())


def test_rooms_end_with_the_connection() -> None:
    async def main() -> None:
        async with couple("tcp") as both:
            lease = await asked(both)
            both.sender.close()
            await ends(both.receiver)
            lease.release()
            await both.settles()

    run(main())


def test_calling_off_is_about_the_room_and_not_what_came_before() -> None:
    async def main() -> None:
        async with couple() as both:
            first = await asked(both)
            with both.sender.pool.lease(8, holder="prefill") as source:
                await both.sender.send("r", source, 100).done()
            with both.receiver.pool.lease(8, holder="decode") as second:
                await both.receiver.ask("r", lease=second)
                ask = await anext(both.sender.asks())
                await both.receiver.withdraw("r")
                while not ask.cancelled:
                    await asyncio.sleep(0.001)
            both.receiver.pool.stamp(first.blocks)  # what came is as it was
            first.release()
            await both.settles()

    run(main())


def test_one_request_has_one_room() -> None:
    async def main() -> None:
        async with couple() as both:
            lease = await asked(both)
            with both.receiver.pool.lease(1, holder="decode") as other:
                with pytest.raises(dmaplane.InvalidError, match="withdraw"):
                    await both.receiver.ask("r", lease=other)
                await both.receiver.withdraw("r")
                await both.receiver.ask("r", lease=other)
                ask = await anext(both.sender.asks())
                with both.sender.pool.lease(1, holder="prefill") as source:
                    await both.sender.send(ask.request, source, 3).done()
                await (await both.next()).complete()
            lease.release()
            await both.settles()

    run(main())


@pytest.mark.parametrize("aborted", [False, True])
def test_chunk_may_be_seen_ahead_of_its_announcement(aborted: bool) -> None:
    async def main() -> None:
        async with receiver_and_stranger() as (receiver, stranger, key):
            with receiver.pool.lease(NEEDED, holder="decode") as lease:
                await receiver.ask("r", lease=lease)
                told = wire.decode_ask(Kind.ASK, (await stranger.hear()).body)
                assert told[2].tolist() == lease.blocks.tolist()
                said = announce(room=1, checksum=False)
                last = wire.pack(Kind.ABORTED, wire.Reason("no").encode(), serial=1)
                memory = stranger._buffer.numpy()
                memory[: len(said + last)] = np.frombuffer(said + last, dtype=np.uint8)
                with stranger.endpoint.region(key) as remote:
                    part, end = stranger._buffer[1024:1088], len(said + last)
                    going = [stranger.endpoint.send(stranger._buffer[: len(said)])]
                    for ordinal in range(ANNOUNCE.chunks):
                        going.append(stranger.endpoint.write_imm(part, remote[:64], ordinal))
                    if aborted:
                        going.append(stranger.endpoint.send(stranger._buffer[len(said) : end]))
                    time.sleep(0.2)  # all of it comes before the receiver has a turn
                    for each in going:
                        await each
                incoming = await anext(receiver)
                if aborted:
                    with contextlib.suppress(dmaplane.TransferError):
                        await incoming.complete()
                else:
                    await incoming.complete()
                    assert (await stranger.hear()).kind is Kind.DONE
                await asyncio.sleep(0.01)
                assert receiver.lost is None

    run(main())


def test_chunks_of_more_tags_than_there_are_rooms_end_that_connection() -> None:
    async def main() -> None:
        async with receiver_and_stranger() as (receiver, stranger, key):
            with receiver.pool.lease(NEEDED, holder="decode") as lease:
                await receiver.ask("r", lease=lease)
                await stranger.hear()
                for tag in (3, 4):
                    with contextlib.suppress(dmaplane.PeerLostError):
                        await stranger.chunk(key, wire.immediate_of(tag, 0))
                with contextlib.suppress(dmaplane.PeerLostError):
                    await stranger.say(announce(room=1))
                assert isinstance(await ends(receiver), dmaplane.ProtocolError)

    run(main())


@pytest.mark.parametrize(
    "said",
    {
        "another request": announce(room=1, request="other"),
        "more than there is room for": announce(
            room=1, **dataclasses.asdict(dataclasses.replace(ANNOUNCE, tokens=TOKENS + 1))
        ),
        "another room": announce(room=2),
        "sums of nothing": sums(0),
    }.items(),
    ids=lambda each: each[0],
)
def test_bad_word_about_a_room_ends_that_connection_and_frees_it(said: tuple[str, bytes]) -> None:
    async def main() -> None:
        async with receiver_and_stranger() as (receiver, stranger, _):
            with receiver.pool.lease(NEEDED, holder="decode") as lease:
                await receiver.ask("r", lease=lease)
                await stranger.hear()
                await stranger.say(said[1])
                assert isinstance(await ends(receiver), dmaplane.ProtocolError)

    run(main())


def test_chunks_that_are_never_announced_end_that_connection() -> None:
    async def main() -> None:
        async with receiver_and_stranger() as (receiver, stranger, key):
            with receiver.pool.lease(NEEDED, holder="decode") as lease:
                await receiver.ask("r", lease=lease)
                await stranger.hear()
                await stranger.chunk(key, wire.immediate_of(3, 0))
                await stranger.chunk(key, wire.immediate_of(3, 1))
                assert receiver.lost is None
                await stranger.say(wire.pack(Kind.GONE, serial=1))
                assert isinstance(await ends(receiver), dmaplane.ProtocolError)

    run(main())
