# SPDX-License-Identifier: MIT
"""Experiments of `bench stream-tiers` that are about a GPU: what its processors reach over mapped
memory, how a batched copy may read, variants of the kernels, the bulk copy unit, launches,
dma-bufs, the BAR.

A variant is a lane of the same device with other settings, so that all of them copy between the
same registered memory. The settings are put back whatever happens.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import itertools
import mmap
import os
import time
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from dmaplane._errors import DmaplaneError
from dmaplane.bench._tiers_bed import DIRECTIONS, KIB, MIB, Bed, Box, Cell, whole
from dmaplane.bench._tiers_blocks import lanes, spread_of, together
from dmaplane.bench._tiers_sheet import OUT_OF_TIME, NotHereError
from dmaplane.stream.cuda import _bar
from dmaplane.stream.cuda._ceiling import processor_bytes_per_second
from dmaplane.stream.cuda._entries import Shape, SweepArguments
from dmaplane.stream.cuda._program import CEILING, HINTS
from dmaplane.stream.cuda._settings import BULK_SLOTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dmaplane.bench._tiers_sheet import Sheet
    from dmaplane.stream import Lane, TierName
    from dmaplane.stream.cuda._device import CudaDevice
    from dmaplane.stream.cuda._program import Hint

Access = Literal["read", "write"]
GROUPS: Final = (1, 2, 4, 8, 12, 16, 24, 32, 64, 132)
SWEPT_BYTES: Final = 256 * MIB
KNEE: Final = 0.95
LAUNCHES: Final = 200
PROBE_SECONDS: Final = 20.0
"""Of a child process: Python, NumPy, the driver's packages and a context, in a virtual machine."""


def device_of(bed: Bed) -> CudaDevice:
    """The device, which is one of CUDA's."""
    return cast("CudaDevice", bed.device)


@contextlib.contextmanager
def tuned(bed: Bed, **settings: Any) -> Iterator[Lane]:
    """A lane of the device with other settings, while the block lasts."""
    device = device_of(bed)
    before = device.settings
    device.settings = dataclasses.replace(before, **settings)
    try:
        lane = device.lane()
        try:
            yield lane
        finally:
            lane.close()
    finally:
        device.settings = before


def knee(rates: dict[int, float]) -> int:
    """The fewest groups that reach KNEE of the best."""
    best = max(rates.values())
    return min(groups for groups, rate in rates.items() if rate >= KNEE * best)


def ceilings(sheet: Sheet, box: Box) -> None:
    """2: contiguous reads and writes by groups, words in flight, and cache hints at the knee."""
    device = device_of(sheet.bed)
    accesses: tuple[Access, ...] = ("read", "write")
    rates: dict[Access, dict[int, float]] = {"read": {}, "write": {}}
    for in_flight, access, groups in itertools.product((8, 4, 2), accesses, GROUPS):
        case = f"{access} of mapped memory, {in_flight} words a lane, {groups} groups"
        few = "" if groups <= device.processors else "it has fewer processors"
        if not sheet.wanted(case, "GB/s", box, few):
            continue
        with sheet.cell(case, "GB/s"):
            samples = [_swept(sheet.bed, access, groups, in_flight=in_flight) for _ in range(3)]
            rate = sheet.row(case, "GB/s", samples)
            found = rates[access]
            found[groups] = max(rate, found.get(groups, 0.0))
            sheet.ceilings[access] = max(found.values())
    knees = []
    for access, found in rates.items():
        if not found:
            continue
        fewest = knee(found)
        knees.append(fewest)
        case = f"{access} of mapped memory, groups for {KNEE:.0%} of the best"
        sheet.row(case, "groups", [float(fewest)])
        for hint in HINTS:
            case = f"{access} of mapped memory, {hint}, {fewest} groups"
            if sheet.wanted(case, "GB/s", box):
                with sheet.cell(case, "GB/s"):
                    rate = _swept(sheet.bed, access, fewest, hint=hint)
                    sheet.row(case, "GB/s", [rate])
    if len(knees) == len(accesses):
        sheet.measured.claim("stream/processors", float(max(knees)))


def _swept(
    bed: Bed, access: Access, groups: int, *, in_flight: int = 8, hint: Hint = "streaming"
) -> float:
    """GB/s of one sweep of the pool."""
    rate = processor_bytes_per_second(
        device_of(bed),
        access=access,
        address=(bed.source if access == "read" else bed.landing).address,
        length=min(SWEPT_BYTES, bed.effort.pool_bytes),
        groups=groups,
        in_flight=in_flight,  # type: ignore[arg-type]
        hint=hint,
    )
    return rate / 1e9


def orders(sheet: Sheet, box: Box) -> None:
    """4: the batched copy up by the order it may read in, by submitting threads, by runs."""
    bed = sheet.bed
    total = bed.effort.total_bytes
    for order, size in itertools.product(("stream", "any", "during-call"), (4, 8, 16, 24, 28, 32)):
        cell = whole("h2d", block_bytes=size * KIB, total_bytes=total)
        case = f"batch, {cell}, order {order}"
        if sheet.wanted(case, "GB/s", box):
            with sheet.cell(case, "GB/s"), tuned(bed, order=order) as lane:
                sheet.rate(case, cell, bed.sampled(lane, "batch", cell, samples=5))
    for run in (4, 16):
        cell = whole("h2d", block_bytes=8 * KIB, total_bytes=total, run=run)
        case = f"batch, {cell}"
        if sheet.wanted(case, "GB/s", box):
            with sheet.cell(case, "GB/s"), lanes(bed, 1) as (lane,):
                sheet.rate(case, cell, bed.sampled(lane, "batch", cell, samples=5))
    for count in (2, 4):
        case = f"batch, 8 KiB h2d, {count} threads"
        if sheet.wanted(case, "GB/s", box):
            part = whole("h2d", block_bytes=8 * KIB, total_bytes=total // count)
            parts: list[tuple[TierName, Cell]] = [("batch", part)] * count
            with sheet.cell(case, "GB/s"), lanes(bed, count) as queues:
                took = [together(bed, queues, parts) for _ in range(6)][1:]
                rates = [count * part.bytes / seconds / 1e9 for seconds in took]
                sheet.row(case, "GB/s", rates)


def _variant(
    sheet: Sheet, box: Box, tier: TierName, name: str, cell: Cell, **settings: Any
) -> None:
    """A row of @cell by @tier with other settings."""
    case = f"{name}, {cell}"
    if sheet.wanted(case, "GB/s", box):
        with sheet.cell(case, "GB/s"), tuned(sheet.bed, **settings) as lane:
            sheet.rate(case, cell, sheet.bed.sampled(lane, tier, cell, samples=5))


def variants(sheet: Sheet, box: Box) -> None:
    """5: 4 KiB blocks by kernels of other groups, threads and hints, and staged by other slots:
    if the goal is missed, which of them would reach it."""
    tiers: tuple[TierName, ...] = ("kernel", "staged")
    for tier in tiers:
        ways = [
            whole(
                direction,
                block_bytes=4 * KIB,
                total_bytes=sheet.bed.effort.total_bytes,
                spread=spread_of(tier),
            )
            for direction in DIRECTIONS
        ]
        if tier == "kernel":
            hints: tuple[Hint, ...] = ("streaming", "plain", "uncached")
            for hint, threads, groups in itertools.product(hints, (256, 512), (8, 12, 16, 4)):
                name = f"kernel of {groups} groups of {threads}, {hint}"
                for cell in ways:
                    _variant(
                        *(sheet, box, tier, name, cell), groups=groups, threads=threads, hint=hint
                    )
            continue
        for size, groups in itertools.product((8, 4, 2, 16), (8, 4, 16)):
            name = f"staged in slots of {size} MiB, gathered by {groups} groups"
            for cell in ways:
                _variant(
                    *(sheet, box, tier, name, cell), slot_bytes=size * MIB, gather_groups=groups
                )


def bulk(sheet: Sheet, box: Box) -> None:
    """5: 4 KiB blocks by the bulk copy unit beside the registers, by groups and slots."""
    for direction, groups in itertools.product(DIRECTIONS, (8, 4, 16, 2, 1)):
        cell = whole(direction, block_bytes=4 * KIB, total_bytes=sheet.bed.effort.total_bytes)
        name = f"kernel by registers, {groups} groups"
        _variant(sheet, box, "kernel", name, cell, engine="registers", groups=groups)
        for slots in BULK_SLOTS:
            name = f"kernel by bulk, {slots} slots, {groups} groups"
            _variant(
                *(sheet, box, "kernel", name, cell), engine="bulk", bulk_slots=slots, groups=groups
            )


def launching(sheet: Sheet, box: Box) -> None:
    """6: what starting a kernel that does nothing costs the thread that starts it."""
    device = device_of(sheet.bed)
    function = device.kernels.function(CEILING, "burn")
    arguments = SweepArguments(turns=0)
    slot = ctypes.c_void_p(ctypes.addressof(arguments))
    stream = device.new_stream()
    api, shape = device.driver.api, Shape(1, 32)

    def by_ctypes() -> int:
        return device.driver.entries.launch(function, shape, arguments, stream=int(stream))

    def by_bindings() -> int:
        answer = api.cuLaunchKernel(
            function, 1, 1, 1, 32, 1, 1, 0, stream, ctypes.addressof(slot), 0
        )
        return int(answer[0])

    try:
        for name, start in (("ctypes", by_ctypes), ("cuda-bindings", by_bindings)):
            took: list[float] = []
            for _ in range(9):
                if box.over and took:
                    break
                with device.current():
                    begin = time.perf_counter()
                    codes = [start() for _ in range(LAUNCHES)]
                    took.append(1e6 * (time.perf_counter() - begin) / LAUNCHES)
                    wrong = [code for code in codes if code]
                    api.cuStreamSynchronize(stream)
                if wrong:
                    raise device.failed(wrong[0], "cuLaunchKernel")
            sheet.row(f"starting an empty kernel by {name}", "us", took[1:] or took)
    finally:
        device.call("cuStreamSynchronize", stream)
        device.call("cuStreamDestroy", stream)


def pinned(sheet: Sheet, box: Box) -> None:
    """9: the same by the driver alone: cuMemHostAlloc, which a pool competes with."""
    device = device_of(sheet.bed)
    took: list[float] = []
    for _ in range(3):
        if box.over and took:
            break
        begin = time.perf_counter()
        address = device.pinned(1 << 30)
        took.append(time.perf_counter() - begin)
        device.call("cuMemFreeHost", address)
    sheet.row("cuMemHostAlloc", "s/GiB", took)


def dmabufs(sheet: Sheet, box: Box) -> None:
    """11: which memory a dma-buf can be had of, and which of those can be mapped."""
    bed, device = sheet.bed, device_of(sheet.bed)
    told: dict[str, str] = {}
    length = 2 * MIB
    address = device.raw_memory(length)
    try:
        for flags in (0, 1):
            told[f"device memory, flags {flags}"] = _exported(device, address, length, flags)
    finally:
        device.call("cuMemFree", address)
    try:
        with bed.pool.buffers[0].export(dmabuf=True):
            told["host pool, by udmabuf"] = "exported"
    except DmaplaneError as refused:
        told["host pool, by udmabuf"] = str(refused)
    told["host memory of the driver, by node"] = _numa_range(device)
    for flags in (0, 1):
        if box.over:
            told[f"child process, flags {flags}"] = OUT_OF_TIME
            continue
        found = _bar.probe(device.number, flags=flags, timeout=PROBE_SECONDS)
        told[f"child process, flags {flags}"] = (
            "works" if found.works else f"{found.step}: {found.error}"
        )
    sheet.measured.notes["dma-bufs"] = told
    worked = sum(text in ("works", "exported and mapped", "exported") for text in told.values())
    sheet.row("dma-bufs, ways that work", "ways", [float(worked)])


def _exported(device: CudaDevice, address: int, length: int, flags: int) -> str:
    """What became of an export, and of mapping it."""
    try:
        descriptor = _bar.exported(device, address, length, flags)
    except (DmaplaneError, RuntimeError) as refused:  # the package, where the driver is older
        return f"not exported: {refused}"
    try:
        mmap.mmap(descriptor, length).close()
    except OSError as refused:
        return f"exported, not mapped: errno {refused.errno}, {refused.strerror}"
    except ValueError as refused:  # mmap() of Python looks at the size of the descriptor first
        return f"exported, not mapped: {refused}"
    finally:
        os.close(descriptor)
    return "exported and mapped"


def _numa_range(device: CudaDevice) -> str:
    """A dma-buf of host memory that the driver placed on a node: undocumented, so tried."""
    api = device.driver.api
    wanted = api.CUmemAllocationProp()
    wanted.type = api.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    wanted.location.type = api.CUmemLocationType.CU_MEM_LOCATION_TYPE_HOST_NUMA
    wanted.location.id = device.node or 0
    kind = api.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
    wanted.requestedHandleTypes = kind
    try:
        with contextlib.ExitStack() as undo:
            flag = api.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
            length = int(device.call("cuMemGetAllocationGranularity", wanted, flag))
            memory = device.call("cuMemCreate", length, wanted, 0)
            undo.callback(device.call, "cuMemRelease", memory)
            address = device.call("cuMemAddressReserve", length, 0, 0, 0)
            undo.callback(device.call, "cuMemAddressFree", address, length)
            device.call("cuMemMap", address, length, 0, memory, 0)
            undo.callback(device.call, "cuMemUnmap", address, length)
            access = api.CUmemAccessDesc()
            access.location = wanted.location
            access.flags = api.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
            device.call("cuMemSetAccess", address, length, [access], 1)
            return _exported(device, int(address), length, 0)
    except (DmaplaneError, RuntimeError) as refused:
        return f"not made: {refused}"


def bar(sheet: Sheet, box: Box) -> None:
    """12: stores through the BAR by size of block, where a mapping can be had."""
    bed = sheet.bed
    reasons = [tier.reason for tier in bed.device.tiers() if tier.name == "bar"]
    if reasons and reasons[0]:
        raise NotHereError(reasons[0])
    with lanes(bed, 1) as (lane,):
        for size in (64, 256, 1 * KIB, 4 * KIB, 16 * KIB, 32 * KIB):
            cell = Cell("h2d", block_bytes=size, count=max(1, 64 * KIB // size))
            case = f"bar, {cell}"
            if sheet.wanted(case, "GB/s", box):
                with sheet.cell(case, "GB/s"):
                    took = bed.sampled(lane, "bar", cell, samples=21)
                    rate = sheet.rate(case, cell, took)
                    sheet.cells["bar", cell] = cell.bytes / rate / 1e9
