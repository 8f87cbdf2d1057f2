# SPDX-License-Identifier: MIT
"""A peer that does not keep to the protocol ends its own connection, and nothing else (L12)."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest

import dmaplane
from dmaplane.kv import Pool, Receiver, Sender
from dmaplane.kv import _wire as wire
from dmaplane.kv._wire import Kind, Role

sys.path.insert(0, str(Path(__file__).parent))
from couple import LAYERS, NHD, couple, endpoints, run

TOKENS = 128
BLOCKS = 32
LAYER_BYTES = TOKENS * NHD.token_bytes
ANNOUNCE = wire.Announce(
    request="r",
    trace="",
    metadata=b"",
    tokens=TOKENS,
    layers=LAYERS,
    layer_chunks=4,
    chunk_bytes=LAYER_BYTES // 4,
    layer_bytes=LAYER_BYTES,
    priority=0,
    checksum=True,
)


class Stranger:
    """An endpoint that says whatever it is told to, byte for byte."""

    def __init__(self, endpoint: dmaplane.Endpoint, role: Role) -> None:
        self.endpoint = endpoint
        self.role = role
        self._buffer = endpoint.plane.buffer(1 << 20)
        self._serials = itertools.count(1)

    def hello(self, **changed: object) -> bytes:
        plain = wire.Hello(
            role=self.role,
            layout=NHD,
            blocks=BLOCKS,
            transfers=4,
            layer_bytes=NHD.layer_bytes(BLOCKS),
            first_byte=0,
            window_bytes=1 << 20,
            key=b"k" if self.role is Role.RECEIVER else b"",
        )
        return wire.pack(Kind.HELLO, dataclasses.replace(plain, **changed).encode())  # type: ignore[arg-type]

    async def say(self, said: bytes) -> None:
        self._buffer.numpy()[: len(said)] = np.frombuffer(said, dtype=np.uint8)
        await self.endpoint.send(self._buffer[: len(said)])

    async def hear(self) -> wire.Message:
        part = self._buffer[512 << 10 :]
        told = await self.endpoint.recv(part)
        start = 512 << 10
        return wire.unpack(self._buffer.numpy()[start : start + told.length_bytes].tobytes())

    async def chunk(self, key: bytes, immediate: int) -> None:
        with self.endpoint.region(key) as remote:
            await self.endpoint.write_imm(self._buffer[:64], remote[:64], immediate)


def announce(serial: int = 1, tag: int = 0, **changed: object) -> bytes:
    room = int(changed.pop("room", 0))  # type: ignore[call-overload]
    body = dataclasses.replace(ANNOUNCE, **changed).encode(room)  # type: ignore[arg-type]
    return wire.pack(Kind.ANNOUNCE, body, tag=tag, serial=serial)


def sums(*ordinals: int, serial: int = 1, tag: int = 0) -> bytes:
    body = np.array([(each, 0) for each in ordinals], dtype=wire.SUM).tobytes()
    return wire.pack(Kind.SUMS, body, tag=tag, serial=serial)


@contextlib.asynccontextmanager
async def receiver_and_stranger() -> AsyncIterator[tuple[Receiver, Stranger, bytes]]:
    """A receiver that has met somebody who can say anything, and its region's key."""
    async with endpoints("tcp") as (near, far):
        with Pool(far.plane, NHD, BLOCKS) as pool:
            stranger = Stranger(near, Role.SENDER)
            opening = asyncio.ensure_future(Receiver.open(far, pool))
            hello = wire.Hello.decode((await stranger.hear()).body)
            await stranger.say(stranger.hello())
            async with await opening as receiver:
                yield receiver, stranger, hello.key
            account = pool.audit()
            assert account.free == account.allocated


async def ends(conversation: Receiver | Sender) -> dmaplane.DmaplaneError:
    while conversation.lost is None:
        await asyncio.sleep(0.001)
    return conversation.lost


BAD_AT_ONCE: dict[str, Callable[[Stranger], bytes]] = {
    "noise": lambda _: bytes(range(200)),
    "nothing": lambda _: b"\0",
    "an unknown kind": lambda _: wire.pack(99),  # type: ignore[arg-type]
    "a second hello": lambda stranger: stranger.hello(),
    "longer than a message": lambda _: bytes(wire.MESSAGE_BYTES_MAX + 1),
    "sums of what never was": lambda _: sums(0),
    "aborted, what never was": lambda _: wire.pack(
        Kind.ABORTED, wire.Reason("x").encode(), serial=1
    ),
    "done, which is not his to say": lambda _: wire.pack(Kind.DONE),
    "ask, which is not his to say": lambda _: wire.pack(Kind.ASK, wire.encode_ask("r")),
    "more read than was sent": lambda _: wire.pack(Kind.GRANT, wire.encode_grant(1, 0)),
    "a serial from the future": lambda _: announce(serial=2),
    "other layers": lambda _: announce(layers=LAYERS + 1),
    "more tokens than the pool": lambda _: announce(
        tokens=16 * BLOCKS + 1,
        layer_bytes=(16 * BLOCKS + 1) * NHD.token_bytes,
        chunk_bytes=1 << 20,
        layer_chunks=1,
    ),
    "other bytes than the layout": lambda _: announce(layer_bytes=LAYER_BYTES - 4, layer_chunks=4),
    "to a room there is not": lambda _: announce(room=1),
    "gone, a room there is not": lambda _: wire.pack(Kind.GONE, serial=1),
    "a long say": lambda _: wire.pack(Kind.SAY, bytes(wire.PAYLOAD_BYTES_MAX + 1)),
}


@pytest.mark.parametrize("what", BAD_AT_ONCE)
def test_bad_word_to_a_receiver_ends_that_connection_alone(what: str) -> None:
    async def main() -> None:
        async with couple("shm") as others, receiver_and_stranger() as (receiver, stranger, _):
            with contextlib.suppress(dmaplane.PeerLostError):
                await stranger.say(BAD_AT_ONCE[what](stranger))
            assert isinstance(await ends(receiver), dmaplane.ProtocolError)
            await others.moves()
            await others.settles()

    run(main())


BAD_WHILE_COMING: dict[str, tuple[bool, list[int | bytes]]] = {
    "a chunk before accept": (False, [0]),
    "sums before accept": (False, [sums(0)]),
    "a chunk of another tag": (True, [1 << 16]),
    "an ordinal there is not": (True, [16]),
    "the last ordinal there can be": (True, [0xFFFF]),
    "a chunk twice": (True, [3, 3]),
    "a sum twice": (True, [sums(1), sums(1)]),
    "a sum twice at once": (True, [sums(1, 1)]),
    "a sum of an ordinal there is not": (True, [sums(16)]),
    "half a sum": (True, [wire.pack(Kind.SUMS, b"1234", serial=1)]),
    "the same tag again": (True, [announce(serial=2)]),
    "too many at once": (True, [announce(serial=tag + 1, tag=tag) for tag in range(1, 65)]),
}


@pytest.mark.parametrize("what", BAD_WHILE_COMING)
def test_bad_chunk_or_sum_ends_that_connection_and_frees_its_blocks(what: str) -> None:
    accepted, said = BAD_WHILE_COMING[what]

    async def main() -> None:
        async with couple("shm") as others, receiver_and_stranger() as (receiver, stranger, key):
            await stranger.say(announce())
            incoming = await receiver.__anext__()
            with receiver.pool.lease(8, holder="decode") as lease:
                if accepted:
                    await incoming.accept(lease)
                    assert (await stranger.hear()).kind is Kind.ACCEPT
                with contextlib.suppress(dmaplane.PeerLostError):
                    for each in said:
                        if isinstance(each, int):
                            await stranger.chunk(key, each)
                        else:
                            await stranger.say(each)
                assert isinstance(await ends(receiver), dmaplane.ProtocolError)
                with pytest.raises(dmaplane.TransferError):
                    await incoming.complete()
            await others.moves()
            await others.settles()

    run(main())


def test_late_words_about_what_has_ended_are_passed_over() -> None:
    async def main() -> None:
        async with receiver_and_stranger() as (receiver, stranger, key):
            await stranger.say(announce())
            incoming = await receiver.__anext__()
            with receiver.pool.lease(8, holder="decode") as lease:
                await incoming.accept(lease)
                assert (await stranger.hear()).kind is Kind.ACCEPT
                aborting = asyncio.ensure_future(incoming.abort("enough"))
                assert (await stranger.hear()).kind is Kind.ABORT
                await stranger.chunk(key, 3)
                await stranger.say(sums(3))
                assert not aborting.done()
                aborted = wire.pack(Kind.ABORTED, wire.Reason("enough").encode(), serial=1)
                await stranger.say(aborted)
                await aborting
            await stranger.say(aborted)
            await stranger.say(sums(4))
            await stranger.say(announce(serial=2))
            again = await receiver.__anext__()
            again.refuse("no")
            assert (await stranger.hear()).kind is Kind.REFUSE
            assert receiver.lost is None

    run(main())


def test_chunk_whose_sum_is_another_ends_the_transfer_alone() -> None:
    async def main() -> None:
        async with receiver_and_stranger() as (receiver, stranger, key):
            await stranger.say(announce())
            incoming = await receiver.__anext__()
            with receiver.pool.lease(8, holder="decode") as lease:
                await incoming.accept(lease)
                assert (await stranger.hear()).kind is Kind.ACCEPT
                await stranger.chunk(key, 5)
                await stranger.say(sums(5))
                told = wire.Reason.decode(Kind.ABORT, (await stranger.hear()).body)
                assert told.chunk == 5
                await stranger.say(wire.pack(Kind.ABORTED, told.encode(), serial=1))
                with pytest.raises(dmaplane.TransferError) as failed:
                    await incoming.complete()
                assert failed.value.chunk == 5
            assert receiver.lost is None

    run(main())


# ---- the other way round


def ask(*blocks: int, number: int = 1, request: str = "a") -> bytes:
    return wire.pack(Kind.ASK, wire.encode_ask(request, b"", np.array(blocks)), serial=number)


def accept(*blocks: int, first: int = 0, total: int = 8) -> bytes:
    body = wire._ACCEPT.pack(first, total) + np.array(blocks, dtype="<u4").tobytes()
    return wire.pack(Kind.ACCEPT, body, serial=1)


GOOD = accept(*range(8))
REFUSE = wire.pack(Kind.REFUSE, wire.Reason("no").encode(), serial=1)
BAD_ANSWERS: dict[str, list[bytes]] = {
    "blocks beyond the pool": [accept(*range(7), BLOCKS)],
    "the same block twice": [accept(0, 1, 2, 3, 4, 5, 6, 6)],
    "blocks that fall": [accept(*range(8, 0, -1))],
    "too few in all": [accept(0, total=7)],
    "too many in all": [accept(0, total=9)],
    "parts that do not follow": [accept(0, 1), accept(5, 6, first=3)],
    "accept twice": [GOOD, GOOD],
    "refuse after accept": [GOOD, REFUSE],
    "done before anything went": [wire.pack(Kind.DONE, serial=1)],
    "done in the middle": [GOOD, wire.pack(Kind.DONE, serial=1)],
    "abort of what never was": [wire.pack(Kind.ABORT, wire.Reason("x").encode(), serial=7)],
    "sums, which are not his to say": [sums(0)],
    "a room beyond the pool": [ask(0, BLOCKS)],
    "a room of nothing": [ask()],
    "two rooms for one": [ask(0), ask(1, number=2)],
    "rooms that are more than the pool": [
        ask(*range(BLOCKS)),
        ask(0, number=2, request="b"),
    ],
    "a room out of turn": [ask(0, number=2)],
    "257 asks": [wire.pack(Kind.ASK, wire.encode_ask(f"r{each}")) for each in range(257)],
}


@pytest.mark.parametrize("what", BAD_ANSWERS)
def test_bad_answer_to_a_sender_ends_that_connection_alone(what: str) -> None:
    async def main() -> None:
        async with couple("shm") as others, endpoints("tcp") as (near, far):
            with (
                Pool(near.plane, NHD, BLOCKS) as pool,
                far.plane.buffer(NHD.pool_bytes(BLOCKS)) as memory,
                memory.region("write") as region,
            ):
                stranger = Stranger(far, Role.RECEIVER)
                opening = asyncio.ensure_future(Sender.open(near, pool))
                await stranger.hear()
                await stranger.say(stranger.hello(key=region.key))
                async with await opening as sender:
                    with pool.lease(8, holder="prefill") as lease:
                        outgoing = sender.send("r", lease, TOKENS, ready=False)
                        assert (await stranger.hear()).kind is Kind.ANNOUNCE
                        with contextlib.suppress(dmaplane.PeerLostError):
                            for each in BAD_ANSWERS[what]:
                                await stranger.say(each)
                        assert isinstance(await ends(sender), dmaplane.ProtocolError)
                        with pytest.raises(dmaplane.TransferError):
                            await outgoing.done()
                account = pool.audit()
                assert account.free == account.allocated
            await others.moves()
            await others.settles()

    run(main())


def test_region_shorter_than_was_said_is_refused() -> None:
    async def main() -> None:
        async with endpoints("shm") as (near, far):
            with Pool(near.plane, NHD, 4) as pool, far.plane.buffer(1 << 20) as memory:
                with memory[:4096].region("write") as region:
                    stranger = Stranger(far, Role.RECEIVER)
                    opening = asyncio.ensure_future(Sender.open(near, pool))
                    await stranger.hear()
                    with contextlib.suppress(dmaplane.PeerLostError):
                        await stranger.say(stranger.hello(key=region.key))
                    with pytest.raises(dmaplane.ProtocolError, match="shorter than its layers"):
                        await opening

    run(main())
