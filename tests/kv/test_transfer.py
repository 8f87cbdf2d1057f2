# SPDX-License-Identifier: MIT
"""Transfers: every byte arrives, checked, or everybody is told why; nothing stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dmaplane
from dmaplane.kv import Incoming, Layout, Pool, Receiver, Sender

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "endpoint"))
from couple import HND, LAYERS, NHD, Couple, couple, run, several, under_way

MLA = Layout(layers=3, kv_heads=1, head_size=96, dtype="bfloat16", block_tokens=16, kind="mla")


# ---- bytes


@pytest.mark.parametrize("path", ["shm", "tcp"])
@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize(
    ("source", "target"),
    [
        (NHD, NHD),
        (NHD, HND),
        (HND, NHD),
        (NHD, dataclasses.replace(NHD, block_tokens=256)),
        (MLA, dataclasses.replace(MLA, block_tokens=64)),
    ],
)
def test_every_byte_arrives_in_its_place(
    path: str, checksum: bool, source: Layout, target: Layout
) -> None:
    async def main() -> None:
        async with couple(path, source, target) as both:
            for tokens in (1, 5, 16, 1000):
                async with under_way(both, tokens, ready=True, checksum=checksum) as (
                    outgoing,
                    incoming,
                    lease,
                ):
                    assert await incoming.complete() is lease
                    await outgoing.done()
                    assert both.same(outgoing, incoming)
                    assert outgoing.statistics.bytes == incoming.statistics.bytes
                    assert incoming.statistics.bytes == (
                        tokens * source.token_bytes * source.layers
                    )
                    target_pool = both.receiver.pool
                    target_pool.check(lease.blocks, target_pool.stamp(lease.blocks))
            await both.settles()

    run(main())


def test_what_was_there_before_stays_where_nothing_came() -> None:
    async def main() -> None:
        async with couple() as both:
            pool = both.receiver.pool
            memory = pool.buffer.numpy()
            memory[:] = 0xA5
            del memory
            async with under_way(both, 20, ready=True) as (_, incoming, lease):
                await incoming.complete()
                others = np.setdiff1d(np.arange(pool.blocks), lease.blocks)
                for layer in range(LAYERS):
                    assert (pool.layer(layer)[others].view(np.uint8) == 0xA5).all()

    run(main())


def test_blocks_that_lie_anywhere_are_found() -> None:
    async def main() -> None:
        async with couple(target=HND) as both:
            kept = []
            for pool in (both.sender.pool, both.receiver.pool):
                leases = [pool.lease(3, holder="other") for _ in range(40)]
                for lease in leases[::2]:
                    lease.release()
                kept += leases
            await both.moves(700)
            for lease in kept:
                lease.release()
            await both.settles()

    run(main())


def test_two_ranks_fill_the_blocks_of_one() -> None:
    """TP 2 to TP 1: two senders, two connections, one lease, published once."""

    async def main() -> None:
        halves = [NHD.for_rank(rank, 2) for rank in range(2)]
        async with contextlib.AsyncExitStack() as stack:
            first = await stack.enter_async_context(couple(source=halves[0], target=NHD))
            target = first.receiver.pool
            near_plane = stack.enter_context(dmaplane.open(plane="embedded"))
            listener = stack.enter_context(target.plane.listen("127.0.0.1:0"))
            near, there = await asyncio.gather(
                near_plane.connect_async(listener.address), listener.accept_async()
            )
            source = stack.enter_context(Pool(near_plane, halves[1], 64))
            sender, receiver = await asyncio.gather(
                Sender.open(near, source), Receiver.open(there, target)
            )
            await stack.enter_async_context(sender)
            await stack.enter_async_context(receiver)
            second = Couple(sender, receiver)
            second.fill(2)
            with (
                first.sender.pool.lease(8, holder="rank 0") as first_lease,
                source.lease(8, holder="rank 1") as second_lease,
                target.lease(8, holder="decode") as lease,
            ):
                outgoing = [
                    first.sender.send("whole", first_lease, 128),
                    sender.send("whole", second_lease, 128),
                ]
                incoming = [await first.next(), await second.next()]
                for each in incoming:
                    await each.accept(lease, publish=False)
                for each in incoming:
                    await each.complete()
                for each in outgoing:
                    await each.done()
                with pytest.raises(dmaplane.StaleEpochError):
                    target.stamp(lease.blocks)
                lease.publish()
                target.stamp(lease.blocks)
                assert first.same(outgoing[0], incoming[0])
                assert second.same(outgoing[1], incoming[1])

    run(main())


# ---- layers, turns


def test_a_layer_is_there_before_the_next_was_made() -> None:
    async def main() -> None:
        async with couple() as both, under_way(both) as (outgoing, incoming, _):
            layers = incoming.layers()
            for layer in range(LAYERS):
                waiting = asyncio.ensure_future(layers.__anext__())
                await asyncio.sleep(0.01)
                assert not waiting.done()
                outgoing.ready(layer)
                assert await waiting == layer
            await incoming.complete()
            await outgoing.done()

    run(main())


def test_ready_may_come_from_any_thread_in_any_order() -> None:
    async def main() -> None:
        async with couple("tcp", target=HND) as both, under_way(both) as (outgoing, incoming, _):
            await asyncio.gather(
                *(asyncio.to_thread(outgoing.ready, layer) for layer in (2, 0, 3, 1))
            )
            await incoming.complete()
            await outgoing.done()
            assert both.same(outgoing, incoming)
            with pytest.raises(dmaplane.InvalidError):
                outgoing.ready(2)
            with pytest.raises(dmaplane.InvalidError):
                outgoing.ready(LAYERS)

    run(main())


def posted(sender: Sender) -> list[tuple[str, int]]:
    """Request and number of chunks of each posting, from here on, as they are made."""
    order: list[tuple[str, int]] = []
    add = sender._window.add

    def noted(posting: Any) -> None:
        order.append((posting.outgoing.request, posting.count))
        add(posting)

    sender._window.add = noted  # type: ignore[method-assign]
    return order


def test_transfers_of_one_priority_take_turns() -> None:
    async def main() -> None:
        async with couple(window=2) as both, several(both, [0, 0, 0]) as (out, into):
            order = posted(both.sender)
            for each in out:
                for layer in range(LAYERS):
                    each.ready(layer)
            await asyncio.gather(*(each.complete() for each in into))
            names = [name for name, chunks in order for _ in range(chunks)]
            together = names[: 3 * names.count("r0") - 4]
            for first in range(0, len(together) - 3, 3):
                assert sorted(together[first : first + 3]) == ["r0", "r1", "r2"]

    run(main())


def test_higher_priority_goes_first() -> None:
    async def main() -> None:
        async with couple(window=2) as both, several(both, [0, 5]) as (out, into):
            order = posted(both.sender)
            for each in out:
                for layer in range(LAYERS):
                    each.ready(layer)
            await asyncio.gather(*(each.complete() for each in into))
            names = [name for name, _ in order]
            assert names.index("r0") > len(names) - 1 - names[::-1].index("r1")

    run(main())


@pytest.mark.parametrize("path", ["shm", "tcp"])
def test_more_transfers_than_may_be_open_all_arrive(path: str) -> None:
    async def main() -> None:
        async with couple(path, target=HND, transfers=4) as both:

            async def accept(incoming: Incoming) -> None:
                with both.receiver.pool.lease(incoming.blocks, holder="decode") as lease:
                    await incoming.accept(lease)
                    await incoming.complete()

            async def send(number: int) -> None:
                with both.sender.pool.lease(6, holder="prefill") as lease:
                    await both.sender.send(f"r{number}", lease, 90, priority=number % 3).done()

            sending = [asyncio.ensure_future(send(number)) for number in range(40)]
            accepting = []
            for _ in range(40):
                incoming = await both.next()
                assert both.receiver.statistics().open <= 4
                accepting.append(asyncio.ensure_future(accept(incoming)))
            await asyncio.gather(*sending, *accepting)
            await both.settles()
            assert both.sender.statistics().transfers == 40
            assert both.receiver.statistics().failed == 0

    run(main())


def test_chunks_are_as_long_as_asked_for_where_the_window_lets_them() -> None:
    """However early the sender opens: what is granted is told, not guessed from the credit."""

    async def main() -> None:
        for asked, got in ((1 << 20, 1 << 20), (64 << 20, 4 << 20)):
            async with couple(chunk_bytes=asked) as both:
                assert both.sender.chunk_bytes == got
                await both.moves(4096)

    run(main())


# ---- asking and saying


def test_asks_come_in_order_and_can_be_called_off() -> None:
    async def main() -> None:
        async with couple() as both:
            for number in range(3):
                await both.receiver.ask(f"r{number}", bytes([number]))
            asks = both.sender.asks()
            first = await asks.__anext__()
            assert (first.request, first.payload, first.cancelled) == ("r0", b"\0", False)
            await both.receiver.withdraw("r0")
            await both.receiver.withdraw("r1")
            while not first.cancelled:
                await asyncio.sleep(0.001)
            assert (await asks.__anext__()).request == "r2"
            with both.sender.pool.lease(1, holder="prefill") as lease:
                with pytest.raises(dmaplane.TransferError, match="withdrawn"):
                    await both.sender.send("r0", lease, 3).done()
            await both.moves()

    run(main())


def test_who_does_not_read_makes_the_peer_wait_and_loses_nothing() -> None:
    async def main() -> None:
        async with couple() as both:

            async def talk() -> None:
                for number in range(1000):
                    await both.sender.say(number.to_bytes(2, "little"))
                    await both.receiver.ask(f"r{number}")

            talking = asyncio.ensure_future(talk())
            await asyncio.sleep(0.2)
            assert not talking.done()
            asks, says = both.sender.asks(), both.receiver.says()
            for number in range(1000):
                assert int.from_bytes(await says.__anext__(), "little") == number
                assert (await asks.__anext__()).request == f"r{number}"
            await talking

    run(main())


def test_iterating_ends_when_the_peer_closes() -> None:
    async def main() -> None:
        async with couple() as both:
            async with both.sender:
                pass
            assert [each async for each in both.receiver] == []
            assert [each async for each in both.receiver.says()] == []
            assert [each async for each in both.sender.asks()] == []

    run(main())


def test_iterating_ends_when_its_own_endpoint_is_closed() -> None:
    async def main() -> None:
        async with couple() as both:
            both.receiver.endpoint.close()
            assert [each async for each in both.receiver] == []
            assert [each async for each in both.receiver.says()] == []
            assert isinstance(both.receiver.lost, dmaplane.ClosedError)

    run(main())


def test_a_loop_that_ends_ends_what_was_left_open_in_it() -> None:
    """Else a worker would keep the connection up, and the pool's region open."""
    with (
        dmaplane.open(plane="embedded") as ours,
        dmaplane.open(plane="embedded") as theirs,
        theirs.listen("127.0.0.1:0") as listener,
        dmaplane.kv.Pool(ours, NHD, 8) as source,
        dmaplane.kv.Pool(theirs, NHD, 8) as target,
    ):

        async def main() -> tuple[dmaplane.kv.Sender, dmaplane.kv.Receiver]:
            near, far = await asyncio.gather(
                ours.connect_async(listener.address), listener.accept_async()
            )
            return await asyncio.gather(
                dmaplane.kv.Sender.open(near, source), dmaplane.kv.Receiver.open(far, target)
            )

        for end in run(main()):
            assert end.closed
            assert end.endpoint.closed


def test_iterating_raises_when_the_peer_is_gone() -> None:
    async def main() -> None:
        async with couple() as both:
            both.sender.endpoint.close()
            with pytest.raises(dmaplane.PeerLostError):
                await both.next()

    run(main())


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("tokens", {"tokens": 0}),
        ("tokens", {"tokens": 256 * 16 + 1}),
        ("lease", {"tokens": 200}),
        ("request", {"request": ""}),
        ("metadata", {"metadata": bytes(1 << 17)}),
        ("priority", {"priority": 1 << 31}),
        ("source_sums", {"source_sums": True}),
    ],
)
def test_what_cannot_be_sent_is_refused_before_anything_is(
    field: str, options: dict[str, Any]
) -> None:
    async def main() -> None:
        async with couple() as both:
            with both.sender.pool.lease(2, holder="prefill") as lease:
                with pytest.raises(dmaplane.InvalidError) as refused:
                    both.sender.send(**{"request": "r", "lease": lease, "tokens": 20, **options})
                assert refused.value.field == field
                assert refused.value.fix
            await both.settles()

    run(main())


def test_more_chunks_than_an_immediate_counts_are_refused_with_the_size_that_helps() -> None:
    async def main() -> None:
        many = dataclasses.replace(NHD, layers=64, kv_heads=2, head_size=256)
        async with couple(source=many, target=many, blocks=400, chunk_bytes=4096) as both:
            with both.sender.pool.lease(400, holder="prefill") as lease:
                with pytest.raises(dmaplane.InvalidError, match="chunk_bytes="):
                    both.sender.send("long", lease, 6400)
                both.sender.chunk_bytes = 16384
                both.sender.send("long", lease, 6400)

    run(main())
