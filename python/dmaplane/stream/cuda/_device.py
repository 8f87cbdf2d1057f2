# SPDX-License-Identifier: MIT
"""A cuda device: its context, streams, memory, tiers.

The device's primary context is used, the one frameworks use too, so memory and streams of
theirs and ours go together. Whatever thread calls, the context is pushed for the time of the
call and popped after it: nobody's current context changes.

A sticky error of the driver makes the device lost: it says so from then on, and everything
fails with that cause. A forked child has no device: each call is ClosedError there.

Nothing here waits for ever. What does not end within `patience_s` (a kernel that never returns,
most likely) makes the device lost, too, and *stuck*: the driver is asked nothing any more,
because what frees memory would wait for that kernel in a call nobody can interrupt. So all
that a stuck device has is leaked on purpose, until the process ends: its memory, streams,
events, kernels, descriptors, the registrations of host memory (whose pages stay pinned, so that
what the kernel may yet write hits nobody else's), and the reference to its primary context.

Who owns what. The device owns its context, kernels, events, memory, registrations and
lanes; close() ends lanes first, each when its turn is over. `_lock` guards the sets of lanes
and memories, `_lost`, and the count of threads that are inside a call of the driver: close()
takes nothing away from under one of them.
"""

from __future__ import annotations

import hashlib
import itertools
import mmap
import os
import pathlib
import re
import threading
import warnings
from typing import TYPE_CHECKING, Any, Final, cast

from dmaplane._errors import (
    ClosedError,
    DeviceLostError,
    DmaplaneError,
    InvalidError,
    UnsupportedError,
)
from dmaplane._scope import Scope
from dmaplane.stream._device import Tier
from dmaplane.stream._registry import Registry
from dmaplane.stream.cuda import _bar, _memory
from dmaplane.stream.cuda._driver import FEATURE, NOT_READY, driver, is_sticky
from dmaplane.stream.cuda._events import (
    CudaMarker,
    EventPool,
    asked,
    foreign_event,
    foreign_stream,
)
from dmaplane.stream.cuda._lane import CudaLane
from dmaplane.stream.cuda._launch import in_pieces
from dmaplane.stream.cuda._load import Load
from dmaplane.stream.cuda._memory import CudaMemory, Pinned
from dmaplane.stream.cuda._program import Kernels, compiler_version, copy_program
from dmaplane.stream.cuda._settings import CudaSettings

if TYPE_CHECKING:
    from dmaplane.stream._copies import Copies, Direction
    from dmaplane.stream._device import Marker
    from dmaplane.stream._registry import Range
    from dmaplane.stream.cuda._launch import Lists

_NON_BLOCKING: Final = 1
_BUSY_PENALTY: Final = 3.0
"""Of tiers that need processors while something else has them; bench/stream_tiers measures."""
_STAGED_PENALTY: Final = 1.5
_NO_CARD: Final = "a cuda device has no network card of its own; with_network(device) adds one"


class Current:
    """The device's context is this thread's for the length of a block. On the hot path."""

    __slots__ = ("_api", "_device")

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._api = device.driver.api

    def __enter__(self) -> None:
        self._device._enter()
        (code,) = self._api.cuCtxPushCurrent(self._device._context)
        if code:
            self._device._leave()
            raise self._device.failed(int(code), "cuCtxPushCurrent")

    def __exit__(self, *_: object) -> None:
        self._api.cuCtxPopCurrent()
        self._device._leave()


class CudaDevice(Scope):
    """A device of the NVIDIA driver. Made by open_device("cuda:N"). Use it in a `with` block."""

    def __init__(self, number: int, settings: CudaSettings) -> None:
        self.driver = driver()
        self.number = number
        self.name = f"cuda:{number}"
        self.settings = settings
        self.registry = Registry(self.name)
        self._process = os.getpid()
        self._closed = True
        self._ending = False  # close() has begun: nothing new is made
        self._closer: int | None = None  # the thread that may still call while it closes
        self._lost: str | None = None
        self._stuck = False
        # Again from the same thread: a signal's handler or a finaliser may interrupt us anywhere.
        self._lock = threading.RLock()
        self._left = threading.Condition(self._lock)
        self._inside = 0
        self._lanes: set[CudaLane] = set()
        self._memories: set[CudaMemory] = set()
        self._handle = self._found(number)
        major = self._attribute("COMPUTE_CAPABILITY_MAJOR")
        self.kernels = Kernels(self.call, major * 10 + self._attribute("COMPUTE_CAPABILITY_MINOR"))
        self.bus_id = _text(self.driver.call("cuDeviceGetPCIBusId", 32, self._handle)).lower()
        self.product = _text(self.driver.call("cuDeviceGetName", 128, self._handle))
        self.node = self._node()
        self._load = Load(self.bus_id) if settings.busy == "nvml" else None
        self._context: Any = self.driver.call("cuDevicePrimaryCtxRetain", self._handle)
        self._closed = False
        try:
            self.events = EventPool(self)
            self.ties = EventPool(self, timed=False)
            self._tiers = self._looked_for()
        except BaseException:
            self.close()
            raise

    def _found(self, number: int) -> Any:
        count = int(self.driver.call("cuDeviceGetCount"))
        if number >= count:
            there = ", ".join(f"cuda:{one}" for one in range(count)) or "none"
            raise UnsupportedError(
                f"device cuda:{number}", f"a device of that number; there is {there}"
            )
        return self.driver.call("cuDeviceGet", number)

    def _attribute(self, name: str) -> int:
        """A number of the device; 0 where the package does not know the attribute."""
        wanted = getattr(self.driver.api.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}", None)
        if wanted is None:
            return 0
        return int(self.driver.call("cuDeviceGetAttribute", wanted, self._handle))

    # What it is.

    @property
    def pci_folder(self) -> pathlib.Path:
        """Of the kernel's account of it."""
        # The driver writes eight digits of the domain on some machines, the kernel four.
        domain, _, rest = self.bus_id.partition(":")
        return pathlib.Path("/sys/bus/pci/devices") / f"{domain[-4:]}:{rest}"

    def _node(self) -> int | None:
        text = _line(self.pci_folder / "numa_node")
        return int(text) if text.isdecimal() else None

    @property
    def identity(self) -> str:
        """Device, driver, link, and the settings that change what a copy costs.

        The link's speed is the highest it has: an idle one is slowed down to save power.
        """
        uuid = bytes(self.driver.call("cuDeviceGetUuid", self._handle).bytes).hex()
        link = "/".join(
            _line(self.pci_folder / name) for name in ("max_link_speed", "current_link_width")
        )
        chosen = hashlib.sha256(repr(self.settings).encode()).hexdigest()[:12]
        driver = self.driver.version
        return f"cuda:{self.product}:{uuid}:{driver}:{_module_version()}:{link}:{chosen}"

    @property
    def closed(self) -> bool:
        """True after close(), and in a forked child."""
        return self._closed or os.getpid() != self._process

    @property
    def processors(self) -> int:
        """How many it has (SMs)."""
        return self._attribute("MULTIPROCESSOR_COUNT")

    def _check(self) -> None:
        if self._closed and threading.get_ident() != self._closer:
            raise ClosedError(f"device {self.name} is closed")
        if os.getpid() != self._process:
            raise ClosedError(
                f"device {self.name} is of a parent process; a forked child opens no CUDA "
                'device at all: start processes by "spawn"'
            )

    def _check_open(self) -> None:
        """Before something is made that close() would have to end."""
        self._check()
        if self._ending:
            raise ClosedError(f"device {self.name} is being closed")
        self.raise_if_lost()

    # Calls of the driver.

    def current(self) -> Current:
        """Its context is this thread's, until the end of the block."""
        self._check()
        return Current(self)

    def _enter(self) -> None:
        with self._lock:
            if self._closed and threading.get_ident() != self._closer:
                raise ClosedError(f"device {self.name} is closed")
            self._inside += 1

    def _leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if self._closed and not self._inside:
                self._left.notify_all()

    def call(self, name: str, *arguments: Any) -> Any:
        """A driver's call in its context; raises its error, and notes a lost device."""
        if self._stuck:
            self.raise_if_lost()
        with self.current():
            return self.inside(name, *arguments)

    def inside(self, name: str, *arguments: Any) -> Any:
        """call(), for who has its context current already. On the hot path."""
        return self._raised(getattr(self.driver.api, name)(*arguments), name)

    def _raised(self, answer: tuple[Any, ...], name: str) -> Any:
        code, *values = answer
        if int(code):
            raise self.failed(int(code), name)
        return values[0] if len(values) == 1 else tuple(values)

    def query(self, event: Any) -> int:
        """What the driver says of an event."""
        with self.current():
            return int(self.driver.api.cuEventQuery(event)[0])

    def failed(self, code: int, call: str) -> DmaplaneError:
        """The error for a CUresult; notes a lost device."""
        error = self.driver.error(code, call, device=self.name)
        if is_sticky(code):
            with self._lock:
                self._lost = self._lost or f"{call}: {self.driver.name(code)}"
        return error

    def raise_if_lost(self) -> None:
        """DeviceLostError once it is lost."""
        if self._lost is not None:
            raise DeviceLostError(self.name, self._lost)

    # Waiting, which has an end.

    def reach(self, marker: Marker) -> None:
        """Waits for @marker; DeviceLostError if it is not reached within `patience_s`."""
        if not marker.wait(self.settings.patience_s):
            raise self.give_up("a mark was not reached")

    def drain(self, stream: Any) -> None:
        """Waits until @stream has nothing to do; DeviceLostError if that takes `patience_s`."""

        def idle() -> bool:
            self.raise_if_lost()
            with self.current():
                (code,) = self.driver.api.cuStreamQuery(stream)
            if int(code) and int(code) != NOT_READY:
                raise self.failed(int(code), "cuStreamQuery")
            return not int(code)

        if not asked(idle, self.settings.patience_s):
            raise self.give_up("what is in a stream has not ended")

    def give_up(self, what: str) -> DeviceLostError:
        """The device is lost and stuck: nothing is asked of it, or freed, from now on."""
        with self._lock:
            self._stuck = True
            self._lost = self._lost or (
                f"{what} in {self.settings.patience_s:g} s (patience_s); a kernel or a copy hangs, "
                "and what it may touch stays as it is until this process ends"
            )
            return DeviceLostError(self.name, self._lost)

    def new_stream(self) -> Any:
        """A stream that waits for nobody it was not told to."""
        priority = self.settings.priority
        if priority is None:
            _, priority = self.call("cuCtxGetStreamPriorityRange")
        return self.call("cuStreamCreateWithPriority", _NON_BLOCKING, priority)

    def raw_memory(self, length: int) -> int:
        """Memory of the device that the registry does not know; whoever asks frees it."""
        return int(self.call("cuMemAlloc", length))

    def pinned(self, length: int) -> int:
        """Host memory the device sees at the same address; whoever asks frees it."""
        return int(self.call("cuMemHostAlloc", length, _memory.PORTABLE_AND_MAPPED))

    # Tiers.

    def _looked_for(self) -> tuple[Tier, ...]:
        mapped = self._why_no_kernels()
        batch = (
            ""
            if self.driver.entries.batch_form
            else f"the driver is of CUDA {self.driver.version // 1000}."
            f"{self.driver.version % 1000 // 10}; batched copies are there from 12.8 on"
        )
        bar = _bar.why_not(self)
        return (
            Tier("single", available=True, merges=True),
            Tier("batch", available=not batch, reason=batch, merges=True),
            Tier("kernel", available=not mapped, reason=mapped, busy_penalty=_BUSY_PENALTY),
            Tier(
                "staged",
                available=not mapped,
                reason=mapped,
                needs_extent=True,
                busy_penalty=_STAGED_PENALTY,
            ),
            Tier(
                "bar",
                available=not bar,
                reason=bar,
                directions=("h2d",),
                largest=_bar.LARGEST,
            ),
            Tier("nic", available=False, reason=_NO_CARD),
        )

    def _why_no_kernels(self) -> str:
        for name, text in (
            ("UNIFIED_ADDRESSING", "one address space for host and device"),
            ("CAN_MAP_HOST_MEMORY", "access of the device to host memory"),
            ("CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM", "registered memory at its own address"),
        ):
            if not self._attribute(name):
                return f"{self.product} has no {text} ({name} is 0)"
        try:
            major, minor = compiler_version()
            if major > self.driver.version // 1000:
                return (
                    f"NVRTC {major}.{minor} makes code that a driver of CUDA "
                    f"{self.driver.version // 1000} does not load; a newer driver, or "
                    'pip install "cuda-bindings=={0}.*" "cuda-toolkit[nvrtc]=={0}.*"'.format(
                        self.driver.version // 1000
                    )
                )
            word = 16
            self.kernels.function(copy_program(word, self.settings.hint), f"grid_h2d_{word}")
        except DeviceLostError:
            raise
        except DmaplaneError as error:
            return f"its kernels cannot be had: {error}"
        return ""

    def tiers(self) -> tuple[Tier, ...]:
        """All six, those that are not there with the reason."""
        return self._tiers

    def busy(self) -> bool:
        """What the settings say, or NVML."""
        if self._load is None:
            return self.settings.busy == "always"
        return self._load.busy()

    def note_work(self) -> None:
        """A kernel of ours starts: until it is over, NVML cannot tell ours from others'."""
        if self._load is not None:
            self._load.note_work()

    # Memory.

    def memory(self, length: int) -> CudaMemory:
        """Memory of its own, registered; content undefined."""
        self._check_open()
        made = CudaMemory(self, length)
        with self._lock:
            self._memories.add(made)
        if any(tier.name == "bar" and tier.available for tier in self._tiers):
            made.mapping = _bar.BarMapping(self, made.address, length)
        return made

    def _forget(self, memory: CudaMemory) -> None:
        with self._lock:
            self._memories.discard(memory)

    def register(self, address: int, length: int) -> Range:
        """Lets it touch memory, which has to stay until unregister().

        Host memory: whole pages, pinned here. What the driver knows already (pinned or
        allocated by a framework) is taken as it is.
        """
        self._check_open()
        return _memory.register(self, address, length)

    def unregister(self, given: Range) -> None:
        """Ends that; BusyError while a copy touches it."""
        if isinstance(given.owner, CudaMemory):
            raise InvalidError("given", f"{given}", fix="memory() is freed by its close()")
        self._check()
        self.registry.release(given)
        _memory.unpin(self, cast("Pinned", given.owner))

    def dmabuf(self, address: int, length: int) -> tuple[int, int]:
        """A dma-buf of memory of its own: a descriptor that is the caller's, and where in it
        @address is. Whole pages of one allocation."""
        first = address - address % mmap.PAGESIZE
        end = -(-(address + length) // mmap.PAGESIZE) * mmap.PAGESIZE
        return _bar.exported(self, first, end - first), address - first

    def pieces_of(self, address: int, length: int) -> list[tuple[int, int]]:
        """Offset and length of the parts of host memory that one copy engine's call may take."""
        step, end = self.settings.piece_bytes, address + length
        edges = {address, end, *range(address - address % step + step, end, step)}
        at = address
        while (at := self.registry.resolve(at)[0].end) < end:  # the next range begins there
            edges.add(at)
        return [(one - address, to - one) for one, to in itertools.pairwise(sorted(edges))]

    def cut(self, direction: Direction, copies: Copies) -> Lists:
        """Destinations, sources and lengths, none across two registrations of host memory."""
        return in_pieces(direction, copies, self.settings.piece_bytes)

    def one_copy(
        self,
        direction: Direction,
        *,
        device_address: int,
        host_address: int,
        length: int,
        stream: Any,
    ) -> None:
        """One copy engine's call at the end of @stream, for who has its context current."""
        entries, handle = self.driver.entries, int(stream)
        if direction == "h2d":
            code = entries.up(
                destination=device_address, source=host_address, length=length, stream=handle
            )
        else:
            code = entries.down(
                destination=host_address, source=device_address, length=length, stream=handle
            )
        if code:
            raise self.failed(code, "cuMemcpyAsync")

    # Lanes and the caller's own streams.

    def lane(self) -> CudaLane:
        """A new ordered queue."""
        self._check_open()
        made = CudaLane(self)
        with self._lock:
            self._lanes.add(made)
            late = self._ending
        if late:
            made.close()  # close() has not seen it
            raise ClosedError(f"device {self.name} is being closed")
        return made

    def _drop(self, lane: CudaLane) -> None:
        with self._lock:
            self._lanes.discard(lane)

    def capture(self, foreign: Any) -> CudaMarker:
        """A mark of what is now in a caller's stream: an object with `__cuda_stream__`, a torch
        stream. Of an event of the caller's: what had been recorded by it. From any thread."""
        self._check()
        handle = foreign_stream(foreign)
        if handle is not None:
            return CudaMarker(self, self.events, handle)
        event = foreign_event(foreign)
        if event is None:
            raise _unknown(foreign)
        # Through a stream of our own, so that the caller may destroy the event at once.
        between = self.new_stream()
        try:
            self.call("cuStreamWaitEvent", between, event, 0)
            return CudaMarker(self, self.events, between)
        finally:
            self.call("cuStreamDestroy", between)

    def follow(self, foreign: Any, marker: Marker) -> None:
        """What is put in the caller's stream from now on begins after @marker."""
        self._check()
        if not isinstance(marker, CudaMarker):
            raise InvalidError("marker", "it is not of a cuda lane", fix="a mark of one")
        handle = foreign_stream(foreign)
        if handle is None:
            raise _unknown(foreign)
        self.call("cuStreamWaitEvent", handle, marker.event, 0)

    # The end.

    def close(self) -> None:
        """Ends lanes, registrations and memory, then itself; idempotent.

        Waits for a call that another thread has under way on one of its lanes; what that one
        asks of the lane next is ClosedError. A stuck device is closed at once, and leaks what
        it had (see above).
        """
        if self.closed:
            return
        with self._lock:
            if self._ending:
                return
            self._ending = True
            lanes = list(self._lanes)
        try:
            for lane in lanes:
                lane.close()
            self._shut()
            with self._lock:
                memories = list(self._memories)
            for memory in memories:
                memory.free()
            for one in self.registry.ranges:
                if isinstance(one.owner, Pinned):
                    _memory.unpin(self, one.owner)
            self.kernels.close()
            self.events.close()
            self.ties.close()
        except DeviceLostError:
            return  # the driver freed all of it when the context died, or it is stuck
        finally:
            self._closed = True
            self._closer = None
            if not self._stuck:
                self.driver.api.cuDevicePrimaryCtxRelease(self._handle)

    def _shut(self) -> None:
        """Nobody but this thread calls the driver any more: who is inside is waited for."""
        with self._lock:
            self._closer = threading.get_ident()
            self._closed = True
            out = self._left.wait_for(lambda: not self._inside, self.settings.patience_s)
        if not out:
            raise self.give_up("a call of the driver has not returned")

    def __del__(self) -> None:
        if not getattr(self, "_closed", True) and os.getpid() == self._process:
            warnings.warn(f"{self!r} was never closed", ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        state = "closed" if self.closed else "lost" if self._lost else self.product
        return f"<device {self.name}, {state}>"


def _unknown(foreign: Any) -> InvalidError:
    return InvalidError(
        "foreign",
        f"{type(foreign).__name__} is no stream of CUDA",
        fix="an object with __cuda_stream__(), a torch.cuda.Stream, or (capture only) an event",
    )


def _text(told: Any) -> str:
    data = told if isinstance(told, bytes) else bytes(told)
    return data.split(b"\0")[0].decode(errors="replace").strip()


def _line(path: pathlib.Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""  # a machine that does not show it


def _module_version() -> str:
    """Of the kernel module, 580.65.06: finer than the CUDA version."""
    found = re.search(r"\b\d+\.\d+(\.\d+)?\b", _line(pathlib.Path("/proc/driver/nvidia/version")))
    return found.group() if found else ""


def describe(number: int) -> str:
    """A line for people about device @number; UnsupportedError says what is missing."""
    with CudaDevice(number, CudaSettings(busy="never", bar="never")) as device:
        there = [tier.name for tier in device.tiers() if tier.available]
        return f"{FEATURE}: {device.name}, {device.product}; tiers {', '.join(there)}"
