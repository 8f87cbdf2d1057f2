# SPDX-License-Identifier: MIT
"""What a KV cache costs on its way from one process to another, next to memcpy and bare writes.

Transfers. 128 MiB of cache in 32 layers, chunks of 1 MiB, window 16, from send() until the other
process has all of it, checked and published, and has said so. It was asked for with the blocks it
goes to, as a decode server asks. Next to it, in turns: over shm memcpy of the same chunks into the
same memory as this process maps it; over tcp a plain stream of WRITE_IMMs of 1 MiB, as `bench
endpoint` has it. After the first round bytes are compared.

First layer. In the other process, since it was announced there: the time to layer 0 as a share of
the time to the last, times the number of layers; 1 would be a transfer without a beginning. The
worse of the paths.

Posting. CPU time of Python until rows for 100,000 blocks that lie anywhere on both sides are
ready to push: plan, chunks, rows, immediates.

Sweeps. Chunk size against window, and number of layers, and layouts of models; GB/s of one
transfer at a time, checksums off. The knee of a window is where twice as much brings no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import mmap
import os
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from dmaplane import _abi
from dmaplane._errors import DmaplaneError
from dmaplane._plane import Capability
from dmaplane.bench import _link, _loops, _result, endpoint
from dmaplane.kv import Layout, Pool, Sender, compile_plan
from dmaplane.kv import _pieces as pieces
from dmaplane.kv._template import Template

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    import numpy.typing as npt

    from dmaplane._plane import Plane
    from dmaplane.kv._ask import Ask

MIB: Final = 1 << 20
LENGTH_BYTES: Final = 128 * MIB
LAYOUT: Final = Layout.of("llama-3-8b")
CHUNK_BYTES: Final = MIB
WINDOW: Final = 16
SWEPT_CHUNKS: Final = (64 << 10, 256 << 10, MIB, 4 * MIB)
SWEPT_WINDOWS: Final = (1, 2, 4, 8, 16, 32, 64)
SWEPT_LAYERS: Final = (8, 16, 80)
MODELS: Final = (
    ("Llama-3-8B", Layout.of("llama-3-8b")),
    ("Llama-3-70B TP8", Layout.of("llama-3-70b", rank=3, degree=8)),
    ("DeepSeek-V3 MLA", Layout.of("deepseek-v3", block_tokens=64)),
)
POSTED_BLOCKS: Final = 100_000
PATIENCE_S: Final = 60.0


class Kind(NamedTuple):
    """What a connection is tried with."""

    path: _link.Path
    chunk_bytes: int = CHUNK_BYTES
    window: int = WINDOW

    def __str__(self) -> str:
        size = (
            f"{self.chunk_bytes >> 20} MiB"
            if self.chunk_bytes >= MIB
            else (f"{self.chunk_bytes >> 10} KiB")
        )
        return f"{self.path} chunk {size} window {self.window}"


def tokens_for(layout: Layout, length_bytes: int) -> int:
    """As many as make about so many bytes, in whole blocks."""
    blocks = length_bytes // (layout.layers * layout.block_bytes)
    return max(1, blocks) * layout.block_tokens


class Ground:
    """A pool on either side of the same layout, and the connection there is between them."""

    def __init__(self, plane: Plane, layout: Layout, length_bytes: int) -> None:
        self.plane = plane
        self.layout = layout
        self.tokens = tokens_for(layout, length_bytes)
        self.blocks = layout.blocks_for(self.tokens)
        self.length_bytes = self.tokens * layout.token_bytes * layout.layers
        self._loop = asyncio.new_event_loop()
        self._stack = contextlib.ExitStack()
        self._stack.callback(self._loop.close)
        self._sender: Sender | None = None
        self._asks: AsyncIterator[Ask] | None = None
        self.far = self._stack.enter_context(
            _link.FarSide(plane.name, "kv", 0, module="dmaplane.bench._kv_far", begin=False)
        )
        try:
            self.pool = self._stack.enter_context(Pool(plane, layout, self.blocks))
            self.lease = self._stack.enter_context(self.pool.lease(self.blocks, holder="bench"))
            source = self.pool.buffer.numpy()
            source.view(np.uint64)[:] = np.arange(len(source) // 8, dtype=np.uint64)
            told = self.far.ask(
                "pool", plane=plane.name, layout=layout.encode().hex(), blocks=self.blocks
            )
            self._memory_path = self.far.path_of(told["fd"])
        except BaseException:
            self._stack.close()
            raise

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """In this ground's loop."""
        return self._loop.run_until_complete(asyncio.wait_for(work, PATIENCE_S))

    def meet(self, kind: Kind) -> None:
        """A new connection of that kind, in place of the one there was."""
        self.part()
        address = self.far.ask("meet", path=kind.path)["address"]

        async def open_sender() -> Sender:
            near = await self.plane.connect_async(address, require=kind.path)
            return await Sender.open(
                near, self.pool, chunk_bytes=kind.chunk_bytes, window=kind.window
            )

        self._sender = self.run(open_sender())
        self._asks = self._sender.asks()

    def part(self) -> None:
        """Ends the connection."""
        if self._sender is not None:
            self.run(self._sender.__aexit__(None, None, None))
            self._sender = None

    def ours(self, *, checksum: bool) -> float:
        """GB/s of one transfer."""

        async def send() -> float:
            assert self._sender is not None
            assert self._asks is not None
            ask = await anext(self._asks)
            begin = time.monotonic()
            await self._sender.send(ask.request, self.lease, self.tokens, checksum=checksum).done()
            return time.monotonic() - begin

        return self.length_bytes / float(self.run(send())) / 1e9

    def first_layer(self) -> float:
        """Of the last transfer: share of the first layer in its time, times the layers."""
        times = self.far.ask("times")
        return float(times["first"] / times["whole"] * self.layout.layers)

    def target(self) -> npt.NDArray[np.uint8]:
        """The other pool's memory."""
        fd = os.open(self._memory_path, os.O_RDWR | os.O_CLOEXEC)
        try:
            return np.frombuffer(mmap.mmap(fd, len(self.pool.buffer)), dtype=np.uint8)
        finally:
            os.close(fd)

    def check(self) -> None:
        """AssertionError unless the other pool is byte for byte this one."""
        source, target = self.pool.buffer.numpy(), self.target()
        for first in range(0, len(source), 16 * MIB):
            if source[first : first + 16 * MIB].tobytes() != (
                target[first : first + 16 * MIB].tobytes()
            ):
                raise AssertionError("the caches differ after a transfer")

    def close(self) -> None:
        """Ends the connection, the other process, the pool."""
        try:
            self.part()
        finally:
            self._stack.close()

    def __enter__(self) -> Ground:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def memcpy_of(ground: Ground) -> Callable[[], float]:
    """GB/s of memcpy, a chunk at a time, into the other pool's memory."""
    source, target = ground.pool.buffer.numpy(), ground.target()
    offsets = np.arange(0, ground.length_bytes, CHUNK_BYTES)
    rows = np.zeros(len(offsets), dtype=_abi.SUBMISSION)
    rows["source_offset"] = rows["target_offset"] = offsets
    rows["length_bytes"] = np.minimum(CHUNK_BYTES, ground.length_bytes - offsets)
    return lambda: ground.length_bytes / _loops.memcpy(target, source, rows)


def measure_shm(measured: _result.Measured, ground: Ground, rounds: int) -> list[float]:
    """Both claims over shm; what the first layer came to."""
    ground.meet(Kind("shm"))
    ground.ours(checksum=True)
    ground.check()
    firsts: list[float] = []

    def plain() -> float:
        rate = ground.ours(checksum=False)
        firsts.append(ground.first_layer())
        return rate

    samples = endpoint.in_turns(
        rounds,
        {
            "ours": plain,
            "checked": lambda: ground.ours(checksum=True),
            "memcpy": memcpy_of(ground),
        },
    )
    for name, claim in (("ours", "kv/shm-128MiB"), ("checked", "kv/shm-128MiB-checksum")):
        case = "shm 128 MiB" + (", checksums" if name == "checked" else "")
        row = _result.paired_row(case, "GB/s", samples[name], "memcpy", samples["memcpy"])
        measured.add(row, claim)
    ground.part()
    return firsts[1:]


def measure_tcp(measured: _result.Measured, ground: Ground, rounds: int) -> list[float]:
    """The claim over tcp; what the first layer came to."""
    firsts: list[float] = []
    with contextlib.ExitStack() as stack:
        bare = endpoint.Ground(stack, ground.plane, "pages", LENGTH_BYTES)
        channel = stack.enter_context(ground.plane.channel(slots=endpoint.SLOTS))
        link = stack.enter_context(
            _link.Link(
                ground.plane,
                bare.far,
                "tcp",
                channel,
                window=endpoint.WINDOW,
                slots=endpoint.SLOTS,
            )
        )
        link.connect()
        case = endpoint.Case(bare, link, channel, endpoint.SIZES[2], "in order")
        rows = case.rows()
        bare.tell_rows(rows)
        ground.meet(Kind("tcp"))
        ground.ours(checksum=True)
        ground.check()

        def plain() -> float:
            rate = ground.ours(checksum=False)
            firsts.append(ground.first_layer())
            return rate

        samples = endpoint.in_turns(
            rounds,
            {
                "ours": plain,
                "checked": lambda: ground.ours(checksum=True),
                "WRITE_IMMs": lambda: case.ours(rows),
            },
        )
        for name, claim in (("ours", "kv/tcp-128MiB"), ("checked", None)):
            told = "tcp 128 MiB" + (", checksums" if name == "checked" else "")
            peer = samples["WRITE_IMMs"]
            measured.add(_result.paired_row(told, "GB/s", samples[name], "WRITE_IMMs", peer), claim)
        ground.part()
    return firsts[1:]


def post(plane: Plane) -> tuple[int, float]:
    """Rows and milliseconds of CPU time for POSTED_BLOCKS, on a connection of this process."""
    layout = Layout(layers=1, kv_heads=1, head_size=16, dtype="float16", block_tokens=16)
    count = POSTED_BLOCKS
    plan = compile_plan(layout, layout)
    random = np.random.default_rng(7)
    ours, theirs = (np.sort(random.permutation(2 * count)[:count]) for _ in range(2))
    length = layout.pool_bytes(2 * count)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(plane.listen())
        accepting = asyncio.new_event_loop()
        stack.callback(accepting.close)

        async def join() -> Any:
            return await asyncio.gather(
                plane.connect_async(listener.address), listener.accept_async()
            )

        near, far = accepting.run_until_complete(join())
        stack.enter_context(near)
        stack.enter_context(far)
        source = stack.enter_context(plane.buffer(length))
        target = stack.enter_context(plane.buffer(length))
        region = stack.enter_context(target.region("write"))
        remote = stack.enter_context(near.region(region.key))
        begin = time.thread_time()
        made = pieces.direct(plan, count * layout.block_tokens, ours, theirs, CHUNK_BYTES)
        rows = near.rows(
            "write",
            source,
            remote,
            local_offsets=made.near,
            remote_offsets=made.far,
            lengths=made.length,
        )
        template = Template(rows, made.starts, layers=1, near_step=0, far_step=0)
        words = template.cut(0, made.chunks, near=0, far=0, immediate=0, user_data=0)
        return len(words), 1000 * (time.thread_time() - begin)


def measure_sweeps(
    measured: _result.Measured,
    ground: Ground,
    paths: tuple[_link.Path, ...],
    *,
    rounds: int,
    quick: bool,
    report: Callable[[str], None],
) -> None:
    """Chunks against windows; a knee for each path."""
    chunks = SWEPT_CHUNKS[1:3] if quick else SWEPT_CHUNKS
    windows = SWEPT_WINDOWS[::2] if quick else SWEPT_WINDOWS
    for path in paths:
        rates: dict[int, float] = {}
        for chunk_bytes in chunks:
            for window in windows:
                kind = Kind(path, chunk_bytes, window)
                report(str(kind))
                ground.meet(kind)
                ground.ours(checksum=False)
                samples = [ground.ours(checksum=False) for _ in range(rounds)]
                measured.add(_result.single_row(str(kind), "GB/s", samples))
                if chunk_bytes == CHUNK_BYTES:
                    rates[window] = _result.median(samples)
        best = max(rates.values())
        knee = next(window for window, rate in rates.items() if rate >= 0.9 * best)
        case = f"{path} knee: window for 0.9 of the best, chunk 1 MiB"
        measured.add(_result.single_row(case, "chunks", [float(knee)]))
    ground.part()


def measure_models(
    measured: _result.Measured,
    plane: Plane,
    paths: tuple[_link.Path, ...],
    *,
    rounds: int,
    quick: bool,
    report: Callable[[str], None],
) -> None:
    """Other numbers of layers, and models; each with pools of its own. @quick: models alone."""
    length_bytes = 32 * MIB if quick else LENGTH_BYTES
    layered = [
        (f"{layers} layers", dataclasses.replace(LAYOUT, layers=layers, model=""))
        for layers in (() if quick else SWEPT_LAYERS)
    ]
    for name, layout in [*layered, *MODELS]:
        with Ground(plane, layout, length_bytes) as ground:
            for path in paths:
                report(f"{path} {name}")
                ground.meet(Kind(path))
                ground.ours(checksum=True)
                for checksum in (False, True):
                    samples = [ground.ours(checksum=checksum) for _ in range(rounds)]
                    case = f"{path} {name}" + (", checksums" if checksum else "")
                    measured.add(_result.single_row(case, "GB/s", samples))
            ground.check()


def measure(plane_name: str, quick: bool, report: Callable[[str], None]) -> _result.Measured:
    """The bench: about two minutes and 512 MiB; with @quick below 20 s."""
    rounds = 5 if quick else 15
    with contextlib.ExitStack() as stack:
        plane = stack.enter_context(_loops.opened(plane_name))
        plane.require(Capability.ENDPOINT)
        measured = _result.Measured(plane.name)
        paths = tuple(path for path in _link.PATHS if path in plane.paths)
        if set(paths) != set(_link.PATHS):
            raise DmaplaneError(f"this bench needs {_link.PATHS}; the plane has {plane.paths}")
        with Ground(plane, LAYOUT, LENGTH_BYTES) as ground:
            report("shm")
            firsts = [_result.median(measure_shm(measured, ground, rounds))]
            report("tcp")
            firsts.append(_result.median(measure_tcp(measured, ground, rounds)))
            case = "first layer, of the whole over the layers"
            measured.add(_result.single_row(case, "ratio", firsts), "kv/first-layer", max(firsts))
            report("posting")
            posted = [post(plane)[1] for _ in range(3 if quick else 7)]
            case = "Python posting 100,000 blocks"
            measured.add(
                _result.single_row(case, "ms", posted), "kv/post-100k-ms", _result.median(posted)
            )
            some = 1 if quick else 3
            measure_sweeps(measured, ground, paths, rounds=some, quick=quick, report=report)
        measure_models(measured, plane, paths, rounds=some, quick=quick, report=report)
    return measured
