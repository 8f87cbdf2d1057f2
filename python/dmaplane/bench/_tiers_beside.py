# SPDX-License-Identifier: MIT
"""Experiments of `bench stream-tiers` beside somebody else's work on a GPU: what copies and a busy
device cost each other, and what torch and a Triton kernel do with the same blocks.

torch and Triton are used where they are installed; where not, the device is kept busy by a kernel
of our own that only computes, and the rows of theirs are left out with the reason.

Work is put in a stream of its own before the copies beside it begin, by the same thread: it then
needs the interpreter no more, and what it loses it loses on the device.
"""

from __future__ import annotations

import collections
import contextlib
import importlib
import importlib.util
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dmaplane._errors import DeviceLostError, UnsupportedError
from dmaplane.bench._tiers_bed import DIRECTIONS, KIB, Bed, Box, Cell, viewed, whole
from dmaplane.bench._tiers_blocks import spread_of
from dmaplane.bench._tiers_cuda import device_of, tuned
from dmaplane.stream.cuda._entries import Shape, SweepArguments
from dmaplane.stream.cuda._events import CudaMarker
from dmaplane.stream.cuda._program import CEILING

if TYPE_CHECKING:
    from dmaplane.bench._tiers_sheet import Sheet
    from dmaplane.stream import Lane, Marker, TierName

Ended = Callable[[], "float | None"]
"""Seconds that the work took on the device, once it has ended."""
Work = Callable[[], Ended]
"""Starts it and returns at once."""

WORK_SECONDS: Final = 0.15
AHEAD: Final = 2
"""Calls beside the work that are in the lane, so that the link never waits for Python."""
TRIAL_TURNS: Final = 2000
_NAP_S: Final = 1e-4
GEMM_SIDE: Final = 8192
LOOPED: Final = 1024
TRITON_PROGRAMS: Final = 12
_TRITON_SOURCE: Final = '''
import triton
import triton.language as tl


@triton.jit
def copy_blocks(sources, destinations, count, WORDS: tl.constexpr, CHUNK: tl.constexpr):
    """Blocks of WORDS 8-byte words, by turns over the programs."""
    for block in range(tl.program_id(0), count, tl.num_programs(0)):
        source = tl.load(sources + block).to(tl.pointer_type(tl.int64))
        destination = tl.load(destinations + block).to(tl.pointer_type(tl.int64))
        for first in range(0, WORDS, CHUNK):
            at = first + tl.arange(0, CHUNK)
            inside = at < WORDS
            words = tl.load(source + at, mask=inside)
            tl.store(destination + at, words, mask=inside)
'''


def _burning(bed: Bed, undo: contextlib.ExitStack) -> Work:
    """A kernel of ours that computes on every processor for about WORK_SECONDS."""
    device = device_of(bed)
    function = device.kernels.function(CEILING, "burn")
    shape = Shape(device.processors, 512)
    stream = device.new_stream()
    undo.callback(device.call, "cuStreamDestroy", stream)
    turns = TRIAL_TURNS

    def start() -> Ended:
        begin = CudaMarker(device, device.events, stream)
        with device.current():
            code = device.driver.entries.launch(
                function, shape, SweepArguments(turns=turns), stream=int(stream)
            )
        if code:
            raise device.failed(code, "cuLaunchKernel")
        end = CudaMarker(device, device.events, stream)
        return lambda: end.seconds_since(begin) if end.reached() else None

    trial = _finished(bed, start)
    turns = max(1, int(turns * WORK_SECONDS / max(trial, 1e-6)))
    return start


def _multiplying(bed: Bed, torch: Any) -> Work:
    """Matrix products in bfloat16 for about WORK_SECONDS."""
    where = torch.device("cuda", device_of(bed).number)
    one = torch.randn(GEMM_SIDE, GEMM_SIDE, device=where, dtype=torch.bfloat16)
    other, result = one.clone(), torch.empty_like(one)
    stream = torch.cuda.Stream(where)
    stream.wait_stream(torch.cuda.current_stream(where))  # where `one` is made
    times = 3

    def start() -> Ended:
        with torch.cuda.stream(stream):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record(stream)
            for _ in range(times):
                torch.mm(one, other, out=result)
            end.record(stream)
        return lambda: float(begin.elapsed_time(end)) / 1e3 if end.query() else None

    _finished(bed, start)  # the library behind it is loaded by this one
    times = 5
    trial = _finished(bed, start) / times
    times = max(1, int(WORK_SECONDS / trial))
    return start


def _finished(bed: Bed, work: Work) -> float:
    """Seconds of the work, alone."""
    end = time.monotonic() + bed.effort.patience_s
    ended = work()
    while (seconds := ended()) is None:
        if time.monotonic() > end:
            bed.stuck(f"work of the bench did not end in {bed.effort.patience_s:g} s")
        time.sleep(_NAP_S)
    return seconds


def _torch(number: int) -> Any:
    """torch with that GPU; UnsupportedError without."""
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:  # OSError: of a library that it loads
        raise UnsupportedError("torch", f"pip install torch ({error})") from error
    if not torch.cuda.is_available() or torch.cuda.device_count() <= number:
        raise UnsupportedError("torch on this device", "a build of torch for CUDA")
    return torch


def _work(sheet: Sheet, undo: contextlib.ExitStack) -> tuple[str, Work]:
    """What keeps the device busy, and its name."""
    bed = sheet.bed
    name = f"matrix products of {GEMM_SIDE}"
    try:
        return name, _multiplying(bed, _torch(device_of(bed).number))
    except DeviceLostError:
        raise
    except Exception as error:  # torch is not there, or somebody else's code did not work
        sheet.absent(name, "s", f"{type(error).__name__}: {error}")
    return "a kernel that computes", _burning(bed, undo)


def busy(sheet: Sheet, box: Box) -> None:
    """7: work alone, copies alone, and both: what each loses."""
    bed = sheet.bed
    variants: list[tuple[str, TierName, dict[str, Any]]] = [("batch", "batch", {})]
    variants += [
        (f"kernel of {groups} groups", "kernel", {"groups": groups}) for groups in (8, 4, 16, 32)
    ]
    variants.append(("staged", "staged", {}))
    ours = device_of(bed).settings.groups
    worst: list[float] = []
    with contextlib.ExitStack() as undo:
        name, work = _work(sheet, undo)
        alone = float(np.median([_finished(bed, work) for _ in range(5)]))
        sheet.row(f"{name}, alone", "s", [alone])
        for title, tier, settings in variants:
            for direction in DIRECTIONS:
                cell = whole(
                    direction,
                    block_bytes=16 * KIB,
                    total_bytes=bed.effort.total_bytes,
                    spread=spread_of(tier),
                )
                case = f"{name} beside {title}, 16 KiB {direction}"
                if not sheet.wanted(case, "percent lost", box):
                    continue
                with sheet.cell(case, "percent lost"), tuned(bed, **settings) as lane:
                    own = bed.sampled(lane, tier, cell, samples=5)
                    both = [_together(bed, lane, tier, cell, work) for _ in range(3)]
                    lost = [100 * (seconds / alone - 1) for seconds, _ in both]
                    middle = sheet.row(case, "percent lost", lost)
                    sheet.row(f"{case}: the copies", "GB/s", [rate for _, rate in both])
                    sheet.rate(f"{case}: the copies alone", cell, own)
                    if settings.get("groups") == ours:
                        worst.append(middle)
    if worst:
        sheet.measured.claim("stream/busy-loss-percent", max(worst))


def _together(bed: Bed, lane: Lane, tier: TierName, cell: Cell, work: Work) -> tuple[float, float]:
    """Seconds of the work beside copies, and the GB/s of those. No bytes are compared here."""
    made = [bed.copies(cell, turn) for turn in range(8)]
    marks: collections.deque[Marker] = collections.deque()
    deadline = time.monotonic() + bed.effort.patience_s
    calls = 0
    ended = work()
    begin = time.perf_counter()
    while (seconds := ended()) is None:
        if time.monotonic() > deadline:
            bed.stuck("work of the bench did not end beside copies")
        lane.execute(tier, cell.direction, made[calls % len(made)])
        marks.append(lane.mark())
        calls += 1
        if len(marks) > AHEAD:
            bed.arrive(marks.popleft(), spin=True)
    while marks:
        bed.arrive(marks.popleft(), spin=True)
    return seconds, calls * cell.bytes / (time.perf_counter() - begin) / 1e9


def others(sheet: Sheet, box: Box) -> None:
    """10: the same blocks by torch, copy by copy and by index, and by a Triton kernel."""
    bed = sheet.bed
    torch = _torch(device_of(bed).number)
    for size in (4 * KIB, 16 * KIB, 64 * KIB):
        cell = whole("h2d", block_bytes=size, total_bytes=bed.effort.total_bytes)
        for name, measure in (("torch", _by_torch), ("Triton", _by_triton)):
            if sheet.wanted(f"{name}, {cell}", "GB/s", box):
                with sheet.cell(f"{name}, {cell}", "GB/s"):
                    measure(sheet, torch, cell)


def _by_torch(sheet: Sheet, torch: Any, cell: Cell) -> None:
    bed = sheet.bed
    where = torch.device("cuda", device_of(bed).number)
    near, far = bed._indices(cell)
    size = cell.block_bytes
    with viewed(bed.source) as seen:
        host = torch.from_numpy(seen[: len(seen) // size * size]).view(-1, size)
        blocks = torch.empty(bed.effort.total_bytes // size, size, dtype=torch.uint8, device=where)
        rows, places = torch.from_numpy(near.astype(np.int64)), far.astype(np.int64)
        spots = torch.from_numpy(places).to(where)
        pinned = torch.empty(cell.count, size, dtype=torch.uint8, pin_memory=True)

        def by_index() -> None:
            torch.index_select(host, 0, rows, out=pinned)
            blocks.index_copy_(0, spots, pinned.to(where, non_blocking=True))

        some = min(LOOPED, cell.count)

        def by_copies() -> None:
            for row, place in zip(near[:some].tolist(), places[:some].tolist(), strict=True):
                blocks[place].copy_(host[row], non_blocking=True)

        for title, run, moved in (
            ("torch, index_select and index_copy_", by_index, cell.bytes),
            ("torch, copy_ a block", by_copies, some * size),
        ):
            rates = []
            for _ in range(4):
                torch.cuda.synchronize(where)
                begin = time.perf_counter()
                run()
                torch.cuda.synchronize(where)
                rates.append(moved / (time.perf_counter() - begin) / 1e9)
            sheet.row(f"{title}, {cell}", "GB/s", rates[1:])


def _by_triton(sheet: Sheet, torch: Any, cell: Cell) -> None:
    """A kernel of the shape published for vLLM: few programs, words of 8 bytes."""
    bed = sheet.bed
    where = torch.device("cuda", device_of(bed).number)
    copies = bed.copies(cell)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "triton_copy.py"
        path.write_text(_TRITON_SOURCE, encoding="utf-8")
        found = importlib.util.spec_from_file_location("triton_copy", path)
        assert found is not None
        assert found.loader is not None
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
        sources, targets = (
            torch.from_numpy(each.astype(np.int64)).to(where)
            for each in (copies.sources, copies.destinations)
        )
        words = cell.block_bytes // 8
        rates = []
        for _ in range(6):
            torch.cuda.synchronize(where)
            begin = time.perf_counter()
            module.copy_blocks[(TRITON_PROGRAMS,)](
                sources, targets, cell.count, WORDS=words, CHUNK=min(1024, words), num_warps=8
            )
            torch.cuda.synchronize(where)
            rates.append(cell.bytes / (time.perf_counter() - begin) / 1e9)
    sheet.row(f"Triton, {TRITON_PROGRAMS} programs, {cell}", "GB/s", rates[1:])
