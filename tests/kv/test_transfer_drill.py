# SPDX-License-Identifier: MIT
"""The failure drill: whatever dies, the right request fails, the others arrive, the books balance.

The test is one side; two processes are the other: the one it happens to, and a bystander whose
transfers have to arrive all the same, byte for byte. At the end of a round every block of
every pool that is left is free again.

DMAPLANE_KV_ROUNDS sets how many rounds there are in all; each has a seed of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import dmaplane
from dmaplane.kv import Layout, Pool
from dmaplane.testing import _rig
from dmaplane.testing._rig import PATIENCE_S

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "endpoint"))

import drill_actors
from drill_actors import BLOCKS, Decode, Prefill, elements, is_right
from nursery import Nursery, Peer

LAYERS = 8
ROUNDS = int(os.environ.get("DMAPLANE_KV_ROUNDS", "14"))
NEAR = Layout(
    layers=LAYERS,
    kv_heads=2,
    head_size=64,
    dtype="bfloat16",
    block_tokens=16,
    order="HND",
    model="drill",
)
FAR = dataclasses.replace(NEAR, block_tokens=32, order="NHD")
LAYOUTS = (NEAR, FAR, dataclasses.replace(NEAR, block_tokens=64))
"""Of the other side: the same, one whose runs are so short that they are staged, longer blocks."""
LOST = "lost|gone|closed|reset|ended"


class Clock:
    """Real time, and what a test adds to it."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


class Stage:
    """The test's own side: a plane, a pool, a door, and who came in by it."""

    def __init__(
        self, nursery: Nursery, path: str, order: random.Random, layout: Layout = NEAR
    ) -> None:
        self.layout = layout
        self.nursery = nursery
        self.path: Any = path
        self.order = order
        self.clock = Clock()

    def tokens(self) -> int:
        """So many that it takes some chunks a layer, and the last block is not full."""
        return self.order.randint(100, 500)

    @contextlib.asynccontextmanager
    async def set_up(self) -> AsyncIterator[Stage]:
        """And at the end: everything is free, and nothing is left of the plane."""
        with dmaplane.open(plane="embedded") as self.plane:
            with Pool(self.plane, self.layout, BLOCKS, clock=self.clock) as self.pool:
                with self.plane.listen(require=self.path) as self.listener:
                    self.sides: list[Prefill | Decode] = []
                    yield self
                    for side in self.sides:
                        await side.close()
                account = self.pool.audit()
                assert account.free == account.allocated == BLOCKS, f"{account} at the end"
                assert self.pool.leases() == ()

    @contextlib.contextmanager
    def actor(
        self, program: str, *, layout: Layout | None = None, **settings: Any
    ) -> Iterator[Peer]:
        """A process with the other role, and by chance with another layout."""
        layout = layout or self.order.choice(LAYOUTS)
        settings |= {"address": self.listener.address, "path": self.path}
        with self.nursery.peer(program, layout=layout.encode().hex(), **settings) as peer:
            yield peer

    async def prefill(self, peer: Peer, **options: Any) -> Prefill:
        """The test prefills for that process, which decodes."""
        side = await Prefill.open(self.pool, await self.listener.accept_async(), **options)
        self.sides.append(side)
        assert await _hear(peer) == {"open": True}
        return side

    async def decode(self, peer: Peer, *, hold: bool = False) -> Decode:
        """The test decodes what that process prefills."""
        side = await Decode.open(self.pool, await self.listener.accept_async(), hold=hold)
        self.sides.append(side)
        assert await _hear(peer) == {"open": True}
        return side


async def _hear(peer: Peer) -> Any:
    """Not in the loop's thread: the peer may need the loop's side to be able to answer."""
    return await asyncio.to_thread(peer.hear)


async def tell(peer: Peer, do: str, **order: Any) -> Any:
    """Has a process do that, and gives its answer."""
    peer.say({"do": do, **order})
    return (await _hear(peer))["answer"]


async def is_unharmed(peer: Peer) -> None:
    """Every block of that process's pool is free."""
    assert await tell(peer, "account") == [BLOCKS, BLOCKS, 0, 0]


def names(failure: str, request: str, why: str) -> None:
    """A clear error: about that request, with the reason."""
    assert failure.startswith(f"transfer {request}"), failure
    assert any(word in failure for word in why.split("|")), failure


async def until(condition: Callable[[], object]) -> None:
    """Looks again and again, and lets the loop go on."""
    limit = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < limit, "it never came to that"
        await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery(drill_actors) as made:
        yield made


@contextlib.contextmanager
def nobody_writes(pool: Pool, count: int) -> Iterator[None]:
    """Takes as many blocks as were freed, which are the same: nothing late lands in them."""
    poison = 0xA5A5
    with pool.lease(count, holder="the next one") as lease:
        for layer in range(pool.layout.layers):
            pool.layer(layer)[lease.blocks] = poison
        yield
        for layer in range(pool.layout.layers):
            assert (pool.layer(layer)[lease.blocks] == poison).all(), "a late write landed"


# ---- what happens


async def prefill_is_killed(stage: Stage) -> None:
    order, layers = stage.order, stage.order.randint(1, LAYERS - 1)
    with stage.actor("prefill") as victim:
        ours = await stage.decode(victim)
        with stage.actor("prefill") as bystander:
            others = await stage.decode(bystander)
            await tell(victim, "send", request="v0", seed=1, tokens=stage.tokens(), layers=LAYERS)
            assert await ours.result("v0") == ""
            await tell(victim, "send", request="v1", seed=2, tokens=stage.tokens(), layers=layers)
            await tell(bystander, "send", request="b0", seed=3, tokens=stage.tokens(), layers=1)
            await tell(
                bystander, "send", request="b1", seed=4, tokens=stage.tokens(), layers=LAYERS
            )
            await (await ours.announced("v1")).layer(layers - 1)
            if order.random() < 0.5:  # one more, of which nobody knows how far it comes
                victim.say(
                    {"do": "send", "request": "v2", "seed": 5, "tokens": 500, "layers": LAYERS}
                )
                await asyncio.sleep(order.random() * 0.01)
            await asyncio.to_thread(victim.kill)
            names(await ours.result("v1"), "v1", LOST)
            assert ours.leases["v1"].state == "aborted"
            assert isinstance(ours.receiver.lost, dmaplane.PeerLostError)
            if "v2" in ours.here:
                last = await ours.result("v2")
                assert last == "" or last.startswith("transfer v2")
            with nobody_writes(stage.pool, len(ours.leases["v1"])):
                assert await others.result("b1") == ""
                await tell(bystander, "ready", request="b0", first=1, end=LAYERS)
                assert await others.result("b0") == ""
            for request in ("b0", "b1"):
                assert await tell(bystander, "result", request=request) == ""
            await is_unharmed(bystander)


async def prefill_is_stopped(stage: Stage) -> None:
    """Silent for too long, it is lost; awake again, it writes nowhere."""
    with stage.actor("prefill") as victim:
        ours = await stage.decode(victim)
        with stage.actor("prefill") as bystander:
            others = await stage.decode(bystander)
            await tell(bystander, "send", request="b0", seed=3, tokens=stage.tokens(), layers=1)
            await others.announced("b0")
            victim.say({"do": "send", "request": "v1", "seed": 1, "tokens": 1500, "layers": LAYERS})
            await (await ours.announced("v1")).layer(0)
            victim.signal(signal.SIGSTOP)
            failure = await ours.result("v1")
            if failure:  # else all of it had come by then
                names(failure, "v1", LOST)
                if stage.pool.audit().quarantined:  # it was stopped half-way through a write
                    victim.signal(signal.SIGCONT)
                    await until(lambda: not stage.pool.audit().quarantined)
                with nobody_writes(stage.pool, len(ours.leases["v1"])):
                    victim.signal(signal.SIGCONT)
                    await tell(bystander, "ready", request="b0", first=1, end=LAYERS)
                    assert await others.result("b0") == ""
                    await asyncio.sleep(0.05)
            else:
                victim.signal(signal.SIGCONT)
                await tell(bystander, "ready", request="b0", first=1, end=LAYERS)
                assert await others.result("b0") == ""
            assert await tell(bystander, "result", request="b0") == ""
            await is_unharmed(bystander)


async def decode_is_killed(stage: Stage) -> None:
    layers = stage.order.randint(1, LAYERS - 1)
    with stage.actor("decode") as victim:
        ours = await stage.prefill(victim)
        with stage.actor("decode") as bystander:
            others = await stage.prefill(bystander)
            ours.send("v0", seed=1, tokens=stage.tokens(), layers=LAYERS)
            assert await ours.result("v0") == ""
            ours.send("v1", seed=2, tokens=stage.tokens(), layers=layers)
            ours.send("v2", seed=3, tokens=stage.tokens(), layers=LAYERS)
            others.send("b0", seed=4, tokens=stage.tokens(), layers=1)
            others.send("b1", seed=5, tokens=stage.tokens(), layers=LAYERS)
            await tell(victim, "announced", request="v1")
            await asyncio.sleep(stage.order.random() * 0.01)
            await asyncio.to_thread(victim.kill)
            names(await ours.result("v1"), "v1", LOST)
            last = await ours.result("v2")
            assert last == "" or last.startswith("transfer v2")
            assert isinstance(ours.sender.lost, dmaplane.PeerLostError)
            others.ready("b0", first=1, end=LAYERS)
            for request in ("b0", "b1"):
                assert await others.result(request) == ""
                assert await tell(bystander, "result", request=request) == ""
            await is_unharmed(bystander)


RECEIVING = ("announced", "accepted", "going", "flowing", "nearly", "done")
SENDING = ("queued", "announced", "going", "nearly", "done")


async def decode_aborts(stage: Stage) -> None:
    """At a stage that changes with the round; another transfer of the connection goes on."""
    at = stage.order.choice(RECEIVING)
    with stage.actor("prefill") as peer:
        side = await stage.decode(peer, hold=True)
        layers = {"going": stage.order.randint(1, LAYERS - 2), "nearly": LAYERS - 1}.get(at, 0)
        layers = LAYERS if at in ("flowing", "done") else layers
        tokens = 1900 if at == "flowing" else stage.tokens()
        await tell(peer, "send", request="other", seed=1, tokens=stage.tokens(), layers=2)
        await tell(peer, "send", request="this", seed=2, tokens=tokens, layers=layers)
        other, this = await side.announced("other"), await side.announced("this")
        side.take(other)
        if at == "announced":
            this.refuse("not today")
            freed = other
        else:
            side.take(this)
            while "this" not in side.leases:
                await asyncio.sleep(0)
            if at == "done":
                await this.complete()
            elif at == "flowing":  # the first is here, the others are on their way
                await this.layer(0)
            elif at != "accepted":
                await this.layer(layers - 1)
            await this.abort("not today")
            failure, freed = await side.result("this"), this
            assert side.leases["this"].state == ("released" if at == "done" else "aborted")
        with nobody_writes(stage.pool, freed.blocks):
            told = await tell(peer, "result", request="this")
            await tell(peer, "ready", request="other", first=2, end=LAYERS)
            assert await side.result("other") == ""
        if at == "done":
            assert (failure, told) == ("", ""), "what is complete stays so"
        else:
            names(told, "this", "not today")
            assert at == "announced" or failure == told
        assert await tell(peer, "result", request="other") == ""
        await is_unharmed(peer)


async def prefill_aborts(stage: Stage) -> None:
    """The same from the other end."""
    at = stage.order.choice(SENDING)
    with stage.actor("decode", hold=at == "announced") as peer:
        side = await stage.prefill(peer, transfers=1 if at == "queued" else 64)
        layers = {"going": stage.order.randint(1, LAYERS - 2), "nearly": LAYERS - 1}.get(at, 0)
        layers = LAYERS if at == "done" else layers
        side.send("other", seed=1, tokens=stage.tokens(), layers=2)
        await tell(peer, "announced", request="other")
        this = side.send("this", seed=2, tokens=stage.tokens(), layers=layers)
        if at == "announced":
            await tell(peer, "take", request="other")
            await tell(peer, "announced", request="this")
        elif at == "done":
            await this.done()
        elif at != "queued":
            await tell(peer, "announced", request="this")
            while this.statistics.chunks == 0 and stage.order.random() < 0.9:
                await asyncio.sleep(0.001)
        await asyncio.wait_for(this.abort("not today"), PATIENCE_S)
        failure = await side.result("this")
        if at == "done":
            assert failure == "", "what is done stays so"
        else:
            names(failure, "this", "not today")
        side.ready("other", first=2, end=LAYERS)
        assert await side.result("other") == ""
        assert await tell(peer, "result", request="other") == ""
        if at in ("going", "nearly"):
            names(await tell(peer, "result", request="this"), "this", "not today")
        await is_unharmed(peer)


async def lease_expires(stage: Stage) -> None:
    """Of a destination while it is filled; of another while somebody reads it."""
    layers = stage.order.randint(1, LAYERS - 1)
    with stage.actor("prefill") as peer:
        side = await stage.decode(peer, hold=True)
        tokens = stage.tokens()
        await tell(peer, "send", request="read", seed=1, tokens=tokens, layers=LAYERS)
        await tell(peer, "send", request="short", seed=2, tokens=stage.tokens(), layers=layers)
        await tell(peer, "send", request="long", seed=3, tokens=stage.tokens(), layers=layers)
        short = await side.announced("short")
        side.take(short, seconds=100)
        side.take(await side.announced("long"))
        reading = await side.announced("read")
        with stage.pool.lease(reading.blocks, holder="reader", seconds=100) as lease:
            await reading.accept(lease)
            await reading.complete()
            stamp = stage.pool.stamp(lease.blocks)
            assert is_right(stage.pool, lease, seed=1, layer=0, tokens=tokens)
            await short.layer(layers - 1)
            stage.clock.ahead += 101
            with pytest.raises(dmaplane.StaleEpochError, match="expired"):
                lease.check()
            with pytest.raises(dmaplane.StaleEpochError, match="changed while it was read"):
                stage.pool.check(lease.blocks, stamp)
            assert stage.pool.account().quarantined >= len(lease), "the reader has not let go"
        names(await side.result("short"), "short", "expired")
        with nobody_writes(stage.pool, len(side.leases["short"])):
            await tell(peer, "ready", request="long", first=layers, end=LAYERS)
            assert await side.result("long") == ""
        names(await tell(peer, "result", request="short"), "short", "expired")
        for request in ("read", "long"):
            assert await tell(peer, "result", request=request) == ""
        await is_unharmed(peer)


async def source_lease_expires(stage: Stage) -> None:
    """What is sent from it is not what was leased any more: that request ends, at both ends."""
    layers = stage.order.randint(0, LAYERS - 1)
    with stage.actor("decode") as peer:
        side = await stage.prefill(peer)
        side.send("short", seed=1, tokens=stage.tokens(), layers=layers, seconds=100)
        side.send("long", seed=2, tokens=stage.tokens(), layers=layers)
        await tell(peer, "announced", request="short")
        stage.clock.ahead += 101
        assert stage.pool.sweep() == 1
        for request in ("short", "long"):
            side.ready(request, first=layers, end=LAYERS)
        names(await side.result("short"), "short", "expired")
        names(await tell(peer, "result", request="short"), "short", "expired")
        assert await side.result("long") == ""
        assert await tell(peer, "result", request="long") == ""
        await is_unharmed(peer)


async def peer_comes_back_with_another_layout(stage: Stage) -> None:
    """Refused at both ends with the difference; one that can be bridged is let in."""
    with stage.actor("prefill") as bystander:
        others = await stage.decode(bystander)
        await tell(bystander, "send", request="b0", seed=1, tokens=stage.tokens(), layers=2)
        with stage.actor("prefill") as before:
            ours = await stage.decode(before)
            await tell(before, "send", request="v0", seed=2, tokens=stage.tokens(), layers=3)
            await (await ours.announced("v0")).layer(2)
            await asyncio.to_thread(before.kill)
            names(await ours.result("v0"), "v0", LOST)
        field, value = stage.order.choice(
            [("head_size", 32), ("model", "another"), ("layers", LAYERS + 1), ("dtype", "float16")]
        )
        changed: Any = {field: value}
        with stage.actor("prefill", layout=dataclasses.replace(FAR, **changed)) as other:
            with pytest.raises(dmaplane.LayoutError, match=field) as refused:
                await Decode.open(stage.pool, await stage.listener.accept_async())
            assert (field, value) in [
                (name, theirs) for name, _, theirs in refused.value.differences
            ]
            told = await _hear(other)
            assert field in told["refused"], told
            assert told["account"] == [BLOCKS, BLOCKS, 0, 0]
        bridged = dataclasses.replace(FAR, block_tokens=64, order="HND")
        with stage.actor("prefill", layout=bridged) as again:
            ours = await stage.decode(again)
            await tell(again, "send", request="v0", seed=3, tokens=stage.tokens(), layers=LAYERS)
            assert await ours.result("v0") == ""
            assert await tell(again, "result", request="v0") == ""
            await is_unharmed(again)
        await tell(bystander, "ready", request="b0", first=2, end=LAYERS)
        assert await others.result("b0") == ""
        assert await tell(bystander, "result", request="b0") == ""
        await is_unharmed(bystander)


Scenario = Callable[[Stage], Awaitable[None]]
SCENARIOS: tuple[Scenario, ...] = (
    prefill_is_killed,
    prefill_is_stopped,
    decode_is_killed,
    decode_aborts,
    prefill_aborts,
    lease_expires,
    source_lease_expires,
    peer_comes_back_with_another_layout,
)
PATHS = ("shm", "tcp")
EACH = -(-ROUNDS // (len(SCENARIOS) * len(PATHS)))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: one.__name__)
@pytest.mark.timeout(60 + 6 * EACH)
def test_drill(nursery: Nursery, scenario: Scenario, path: str) -> None:
    async def play(order: random.Random) -> None:
        stage = Stage(nursery, path, order)
        async with stage.set_up():
            await asyncio.wait_for(scenario(stage), 4 * PATIENCE_S)

    for round_ in range(EACH):
        seed = f"{scenario.__name__}-{path}-{round_}"
        try:
            asyncio.run(play(random.Random(seed)))
        except BaseException as failure:
            raise AssertionError(f"in round {round_}, seed {seed!r}: {failure!r}") from failure


def test_right_cache_is_told_from_a_wrong_one() -> None:
    """What the drill believes: seeds, layers and single bits differ."""
    kinds = [(1, 0), (1, 1), (2, 0)]
    caches = [elements(NEAR, seed=seed, layer=layer, tokens=40) for seed, layer in kinds]
    assert len({one.tobytes() for one in caches}) == 3
    with dmaplane.open(plane="embedded") as plane, Pool(plane, NEAR, 8) as pool:
        with pool.lease(3, holder="test") as lease:
            drill_actors.put(pool, lease, seed=1, layer=2, tokens=40)
            assert is_right(pool, lease, seed=1, layer=2, tokens=40)
            assert not is_right(pool, lease, seed=2, layer=2, tokens=40)
            assert not is_right(pool, lease, seed=1, layer=3, tokens=40)
            pool.block(2, int(lease.blocks[2]))[1, 0, 7, 5] ^= 1
            assert not is_right(pool, lease, seed=1, layer=2, tokens=40)


LONG = dataclasses.replace(NEAR, kv_heads=8, head_size=128)
TRIES = 25


@pytest.mark.parametrize("goes_on", [True, False], ids=["goes-on", "is-killed"])
def test_blocks_of_a_write_that_was_stopped_half_way_come_back(
    nursery: Nursery, goes_on: bool
) -> None:
    """Over shm it is the peer who writes. Nobody gets its blocks before it is through, or dead."""

    async def caught(order: random.Random) -> bool:
        """Whether it was stopped in the middle of a write; what has to hold then is looked at."""
        stage = Stage(nursery, "shm", order, LONG)
        async with stage.set_up():
            with stage.actor("prefill", layout=LONG, chunk_bytes=1 << 20) as victim:
                ours = await stage.decode(victim)
                place = stage.pool.buffer.numpy()[order.randrange(4, 8) << 20 :]
                tokens = BLOCKS * LONG.block_tokens
                victim.say(
                    {"do": "send", "request": "v1", "seed": 1, "tokens": tokens, "layers": LAYERS}
                )
                await asyncio.to_thread(_rig.wait_until_begun, place, int(place[0]))
                victim.signal(signal.SIGSTOP)
                del place
                if not await ours.result("v1") or not stage.pool.audit().quarantined:
                    return False
                await asyncio.sleep(0.5)
                assert stage.pool.audit().quarantined == BLOCKS
                if goes_on:
                    victim.signal(signal.SIGCONT)
                else:
                    victim.kill()
                await until(lambda: not stage.pool.audit().quarantined)
        return True

    assert any(asyncio.run(caught(random.Random(attempt))) for attempt in range(TRIES))
