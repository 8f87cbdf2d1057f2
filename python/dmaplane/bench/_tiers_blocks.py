# SPDX-License-Identifier: MIT
"""Experiments of `bench stream-tiers` that any device can be asked: ceilings of the copy engine,
the sweep of block sizes, small calls, two ways at once, what pinning costs, and the stream itself.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from typing import TYPE_CHECKING, Final

import numpy as np

from dmaplane._errors import TimedOutError
from dmaplane.bench import _result
from dmaplane.bench._tiers_bed import (
    DIRECTIONS,
    KIB,
    MIB,
    Bed,
    Box,
    Cell,
    Spread,
    size_text,
    whole,
)
from dmaplane.stream import Choice, Copies, CopyStream, HostPool, Profile

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from dmaplane.bench._tiers_sheet import Sheet
    from dmaplane.stream import Lane, TierName

    Part = tuple[TierName, Cell]

SMALL_COUNTS: Final = (1, 4, 16, 64, 256)
SMALL_SIZES: Final = (4 * KIB, 16 * KIB, 64 * KIB)
SMALL_SAMPLES: Final = 51
SUBMITTED: Final = 10_000
BACK_TO_BACK: Final = 4
SIDE_BY_SIDE: Final = 8
"""Calls of each thread: what one begins before the other is then little of the whole."""
PAIRS: Final[tuple[tuple[TierName, TierName], ...]] = (
    ("batch", "batch"),
    ("kernel", "kernel"),
    ("kernel", "batch"),
    ("staged", "staged"),
)
"""Up and down at once."""
SHARES: Final = (0.25, 0.5, 0.75)


@contextlib.contextmanager
def lanes(bed: Bed, count: int) -> Iterator[list[Lane]]:
    """So many queues, closed afterwards."""
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(count):
            lane = bed.device.lane()
            stack.callback(lane.close)
            made.append(lane)
        yield made


def engine(sheet: Sheet, box: Box) -> None:
    """1: one copy of all of the memory: the copy engine, alone and both ways at once."""
    bed = sheet.bed
    length = bed.effort.total_bytes
    up, down = (
        Cell(direction, block_bytes=length, count=1, spread="extent") for direction in DIRECTIONS
    )
    with lanes(bed, 2) as queues:
        for cell in (up, down):
            case = f"engine, {size_text(length)} {cell.direction}"
            if not sheet.wanted(case, "GB/s", box):
                continue
            with sheet.cell(case, "GB/s"):
                took = bed.sampled(queues[0], "single", cell, times=2 * BACK_TO_BACK)
                sheet.ceilings[f"engine {cell.direction}"] = sheet.rate(case, cell, took)
        case = f"engine, {size_text(length)} both ways, sum"
        if sheet.wanted(case, "GB/s", box):
            with sheet.cell(case, "GB/s"):
                _at_once(sheet, case, queues, [("single", up), ("single", down)])
    _placed(sheet, box)


def _placed(sheet: Sheet, box: Box) -> None:
    """The engine again, from memory on each node and of each page size."""
    bed = sheet.bed
    nodes = [node.node for node in bed.plane.topology().nodes if node.memory_bytes]
    length = bed.effort.total_bytes
    kinds: tuple[Any, ...] = (None, "require")
    for node, huge in itertools.product(nodes, kinds):
        pages = "huge pages" if huge else "small pages"
        case = f"engine, {size_text(length)} h2d from node {node}, {pages}"
        if not sheet.wanted(case, "GB/s", box):
            continue
        cell = Cell("h2d", block_bytes=length, count=1, spread="extent")
        with (
            sheet.cell(case, "GB/s"),
            HostPool(bed.plane, bed.device, length, node=node, huge=huge) as pool,
            pool.extent(length) as extent,
            lanes(bed, 1) as (lane,),
        ):
            took = [
                bed.timed(
                    lane,
                    "single",
                    "h2d",
                    [Copies.one(bed.memory.address, extent.address, length)],
                )
                for _ in range(1 + bed.effort.samples)
            ]
            sheet.rate(case, cell, took[1:])


def together(bed: Bed, queues: Sequence[Lane], parts: Sequence[Part], *, times: int = 1) -> float:
    """Seconds from when threads begin at the same moment until all have ended; each submits
    @times calls of its part to its own lane.

    No bytes are compared: calls up write what calls down read at that time. That they are right
    one by one is seen elsewhere.
    """
    start = threading.Barrier(len(parts))
    begins: list[float] = []
    ends: list[float] = []
    failed: list[BaseException] = []

    def submit(lane: Lane, name: TierName, cell: Cell, calls: list[Copies]) -> None:
        try:
            before = lane.mark()
            start.wait(bed.effort.patience_s)
            begin = time.perf_counter()
            for copies in calls:
                lane.execute(name, cell.direction, copies)
            after = lane.mark()
            bed.arrive(after)  # with naps: who spins takes the interpreter from who submits
            end = time.perf_counter()
            begins.append(0.0 if bed.modelled else begin)
            ends.append(after.seconds_since(before) if bed.modelled else end)
        except BaseException as error:  # told to who waits
            failed.append(error)
            start.abort()

    threads = []
    for number, (lane, (name, cell)) in enumerate(zip(queues, parts, strict=True)):
        calls = [bed.copies(cell, number * times + turn) for turn in range(times)]
        threads.append(threading.Thread(target=submit, args=(lane, name, cell, calls)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return max(max(ends) - min(begins), 1e-9)


def _at_once(sheet: Sheet, case: str, queues: Sequence[Lane], parts: Sequence[Part]) -> None:
    """A row in GB/s of all @parts together."""
    effort = sheet.bed.effort
    times = 2 if effort.quick else SIDE_BY_SIDE
    moved = times * sum(cell.bytes for _, cell in parts)
    samples = (1 if effort.quick else effort.samples) + 1
    took = [together(sheet.bed, queues, parts, times=times) for _ in range(samples)][1:]
    sheet.row(case, "GB/s", [moved / seconds / 1e9 for seconds in took])


def sweep(sheet: Sheet, box: Box) -> None:
    """3: every size by every tier in each direction, at random, once and back to back."""
    bed = sheet.bed
    with lanes(bed, 1) as (lane,):
        for size, direction in itertools.product(bed.effort.sizes, DIRECTIONS):
            for name in bed.tiers(direction):
                cell = whole(
                    direction,
                    block_bytes=size,
                    total_bytes=bed.effort.total_bytes,
                    spread=spread_of(name),
                )
                case = f"{name}, {cell}"
                if not sheet.wanted(case, "GB/s", box, _refusal(bed, name, cell)):
                    continue
                with sheet.cell(case, "GB/s"):
                    took = bed.sampled(lane, name, cell)
                    sheet.rate(case, cell, took)
                    sheet.cells[name, cell] = _result.median([one.seconds for one in took])
                    if name in ("batch", "kernel", "staged") and size <= 16 * KIB:
                        more = bed.repeated(lane, name, cell, times=BACK_TO_BACK, samples=3)
                        sheet.rate(f"{case}, back to back", cell, more)


def spread_of(name: TierName) -> Spread:
    """How the host's blocks lie: at random, for `staged` in one piece."""
    return "extent" if name == "staged" else "scattered"


def _refusal(bed: Bed, name: TierName, cell: Cell) -> str:
    """Why that tier does not take these, or is not asked to."""
    if name == "bar" and (cell.direction == "d2h" or cell.bytes > 8 * MIB):
        return "a processor through the BAR: calls of 8 MiB at most, and never back"
    for tier in bed.device.tiers():
        if tier.name == name:
            return tier.refusal(bed.copies(cell), cell.direction)
    return f"{bed.device.name} has no such tier"


def small(sheet: Sheet, box: Box) -> None:
    """6: calls of few blocks: how long until the last byte is there, p50 and p99."""
    bed = sheet.bed
    samples = 7 if bed.effort.quick else SMALL_SAMPLES
    with lanes(bed, 1) as (lane,):
        for size, count, direction in itertools.product(SMALL_SIZES, SMALL_COUNTS, DIRECTIONS):
            if size * count > bed.effort.total_bytes:
                continue
            for name in bed.tiers(direction):
                cell = Cell(direction, block_bytes=size, count=count, spread=spread_of(name))
                case = f"{name}, {count} x {size_text(size)} {direction}"
                if not sheet.wanted(case, "us", box, _refusal(bed, name, cell)):
                    continue
                with sheet.cell(case, "us"):
                    took = bed.sampled(lane, name, cell, samples=samples)
                    sheet.note_times(case, took)
                    seen = [1e6 * one.seconds for one in took]
                    middle = sheet.row(f"{case}, p50", "us", seen)
                    sheet.row(f"{case}, p99", "us", [float(np.percentile(seen, 99))])
                    device = [1e6 * one.device for one in took]
                    sheet.row(f"{case}, p50 by the device's clock", "us", device)
                    sheet.latencies[name, cell] = middle
                    sheet.cells[name, cell] = middle / 1e6


def two_ways(sheet: Sheet, box: Box) -> None:
    """8: up and down at once by pairs of tiers, and one direction shared by two of them."""
    bed = sheet.bed
    total = bed.effort.total_bytes
    there = set(bed.tiers("h2d"))
    plans: list[tuple[str, list[Part]]] = []
    for size, names in itertools.product((4 * KIB, 64 * KIB), PAIRS):
        pair: list[Part] = [
            (name, whole(way, block_bytes=size, total_bytes=total, spread=spread_of(name)))
            for way, name in zip(DIRECTIONS, names, strict=True)
        ]
        plans.append((f"{names[0]} up and {names[1]} down, {size_text(size)}, sum", pair))
    for share, direction in itertools.product(SHARES, DIRECTIONS):
        sizes: tuple[tuple[TierName, float], ...] = (("kernel", share), ("batch", 1 - share))
        shared: list[Part] = [
            (name, whole(direction, block_bytes=64 * KIB, total_bytes=int(total * part)))
            for name, part in sizes
        ]
        plans.append((f"kernel {share:.0%} and batch of 64 KiB {direction}, sum", shared))
    with lanes(bed, 2) as queues:
        for case, parts in plans:
            missing = {name for name, _ in parts} - there
            refusal = f"there is no {' and no '.join(sorted(missing))} here" if missing else ""
            if sheet.wanted(case, "GB/s", box, refusal):
                with sheet.cell(case, "GB/s"):
                    _at_once(sheet, case, queues, parts)


def pinning(sheet: Sheet, box: Box) -> None:
    """9: what memory costs that the device may touch, per GiB, by how it is made."""
    bed = sheet.bed
    length = 32 * MIB if bed.effort.quick else 1 << 30
    kinds: tuple[tuple[str, Any, int], ...] = (
        ("small pages, 1 thread", None, 1),
        ("small pages, 4 threads", None, 4),
        ("small pages, 16 threads", None, 16),
        ("huge pages, 4 threads", "require", 4),
    )
    for name, huge, threads in kinds:
        case = f"pool of memfds, {name}"
        if not sheet.wanted(case, "s/GiB", box):
            continue
        with sheet.cell(case, "s/GiB"):
            took = []
            for _ in range(3):
                begin = time.perf_counter()
                pool = HostPool(
                    bed.plane,
                    bed.device,
                    length,
                    huge=huge,
                    piece=max(length // threads, 2 * MIB),
                    threads=threads,
                )
                took.append((time.perf_counter() - begin) * (1 << 30) / length)
                pool.close()
            sheet.row(case, "s/GiB", took)


def submitting(sheet: Sheet, box: Box) -> None:
    """The stream: what a call of 10,000 blocks costs the thread that makes it."""
    bed = sheet.bed
    size = 4 * KIB
    took, whole_call = [], []
    index = np.arange(SUBMITTED, dtype=np.uint32)
    order = np.random.default_rng(1).permutation(index)
    case = f"submitting {SUBMITTED:,} blocks of {size_text(size)} in one call"
    with (
        bed.device.memory(SUBMITTED * size) as memory,
        CopyStream(bed.device, require="batch") as copying,
    ):
        for number in range(1 + 30):
            begin, cpu = time.perf_counter(), time.thread_time()
            operation = copying.copy(
                Copies.indexed(
                    source=bed.source.address,
                    destination=memory.address,
                    source_stride=size,
                    destination_stride=size,
                    length=size,
                    source_index=order,
                    destination_index=index,
                )
            )
            if number:  # the first one does not count
                took.append(1e3 * (time.thread_time() - cpu))
                whole_call.append(1e3 * (time.perf_counter() - begin))
            try:
                operation.wait(bed.effort.patience_s)
            except TimedOutError as late:
                bed.stuck(f"{case}: {late}")
            if box.over and number > 3:
                break
    cost = sheet.row(f"{case}, CPU of the caller", "ms", took)
    sheet.row(f"{case}, until it returns", "ms", whole_call)
    sheet.measured.claim("stream/submit-10000", cost)


def choosing(sheet: Sheet, box: Box) -> None:
    """The choice: by how much the tier it takes is worse than the best one, as measured here."""
    bed = sheet.bed
    profile = Profile.measure(bed.device)
    choice = Choice(profile)
    sheet.row("calibration", "s", [profile.seconds])
    worst, told = 0.0, ""
    groups: dict[Cell, dict[TierName, float]] = {}
    for (name, cell), seconds in sheet.cells.items():
        groups.setdefault(cell, {})[name] = seconds
    with lanes(bed, 1) as (lane,):
        for cell, seen in groups.items():
            copies = bed.copies(cell)
            taken = choice(copies, cell.direction, bed.device)
            if cell.spread == "extent":  # the others were measured over scattered blocks
                for name in bed.tiers(cell.direction):
                    if name in seen or _refusal(bed, name, cell) or box.over:
                        continue
                    with sheet.cell(f"{name}, {cell}, beside what is chosen", "s"):
                        more = bed.sampled(lane, name, cell, samples=3)
                        seen[name] = _result.median([one.seconds for one in more])
            if taken not in seen:
                continue
            ratio = seen[taken] / min(seen.values())
            if ratio > worst:
                worst, told = ratio, f"{taken} for {cell}"
    if told:
        sheet.row(f"choice, the worst cell ({told})", "ratio", [worst])
        sheet.measured.claim("stream/choice", worst)
