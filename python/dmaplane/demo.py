# SPDX-License-Identifier: MIT
"""The demo: one buffer's life, with every promise checked on the way.

Allocate on a node and verify where the pages are; stream a copy with checksums
through a channel, next to plain memcpy over the same memory; hand the buffer
to a second process, which verifies it and copies from it; kill that process in
the middle; show that no byte changed and nothing is left behind.

Who owns what: the parent owns both buffers. The child (_demo_child.py) gets a
descriptor of one over a socketpair, imports it read-only, and owns a buffer of
its own. It is killed, never asked to stop: whatever has to be returned, the
plane and the kernel return.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import dataclasses
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np

import dmaplane
from dmaplane._kernel import DEVICE_PATH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHUNK_BYTES: Final = 1 << 20
SLOTS: Final = 64
ROUNDS: Final = 5
CHILD_STEP_S: Final = 60.0
"""A child that has not answered by then is a failed check."""
RETURN_S: Final = 1.0
"""kill -9 gives everything back within this (L4)."""
_SEED: Final = 20260101


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One thing that was done and checked."""

    name: str
    passed: bool
    detail: str


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """All that the demo did."""

    plane: str
    reason: str
    path: str
    node: int
    bytes: int
    gb_per_s: float
    """Through the channel, checksum included; median of ROUNDS."""
    memcpy_gb_per_s: float
    """Plain memcpy over the same memory, in turns with the above, without checksum."""
    checks: tuple[Step, ...]

    @property
    def passed(self) -> bool:
        """True if every check did."""
        return all(step.passed for step in self.checks)


class Memory(NamedTuple):
    """Something through which a process reaches memory of a plane."""

    what: str
    owner: int
    """The device of a memory file; else the process."""
    number: int


@dataclasses.dataclass(frozen=True, slots=True)
class Traces:
    """What this process and its plane hold at one moment."""

    buffers: int
    buffer_bytes: int
    mappings: int
    channels: int
    descriptors: int
    resident_shared_bytes: int

    @classmethod
    def now(cls, plane: dmaplane.Plane) -> Traces:
        """Counts them."""
        counted = plane.statistics()
        return cls(
            buffers=counted.buffers,
            buffer_bytes=counted.buffer_bytes,
            mappings=counted.mappings,
            channels=counted.channels,
            descriptors=len(os.listdir("/proc/self/fd")),
            resident_shared_bytes=_kibibytes("/proc/self/status", "RssShmem") << 10,
        )


class _Demo:
    """One run: the plane, the two buffers, the checksums, and what was found."""

    def __init__(
        self,
        plane: dmaplane.Plane,
        source: dmaplane.Buffer,
        target: dmaplane.Buffer,
        channel: dmaplane.Channel,
        progress: Callable[[str, float], None],
    ) -> None:
        self.plane = plane
        self.source = source
        self.target = target
        self.channel = channel
        self.progress = progress
        self.chunks = -(-source.length_bytes // CHUNK_BYTES)
        self.sums: list[int] = []
        self.whole = 0
        self.steps: list[Step] = []

    def add(self, name: str, passed: bool, detail: str) -> None:
        self.steps.append(Step(name, passed, detail))

    def placement(self, node: int) -> None:
        """Where are the pages? Counted now, not remembered."""
        found = [buffer.recheck() for buffer in (self.source, self.target)]
        right = all(
            place.verified != "unknown" and not place.misplaced and set(place.nodes) <= {node}
            for place in found
        )
        first = found[0]
        self.add(
            "placed",
            right,
            f"2 buffers on node {node}: {sum(place.pages for place in found)} pages of "
            f"{first.page_bytes >> 10} KiB, {sum(place.misplaced for place in found)} elsewhere "
            f"({first.verified})",
        )

    def fill(self) -> None:
        """Random bytes with a known checksum for each chunk and for the whole."""
        random = np.random.default_rng(_SEED)
        for chunk in range(self.chunks):
            bytes_ = self.source[_span(chunk, self.source.length_bytes)].numpy()
            bytes_[:] = np.frombuffer(random.bytes(len(bytes_)), dtype=np.uint8)
            self.sums.append(dmaplane.crc32c(bytes_.data))
            self.whole = dmaplane.crc32c(bytes_.data, self.whole)
            self.progress("fill", (chunk + 1) / self.chunks)

    def stream(self) -> tuple[float, float]:
        """Copies through the channel, proves it, then times it in turns with memcpy."""
        rows = np.zeros(self.chunks, dtype=dmaplane.SUBMISSION)
        rows["operation"] = dmaplane.abi.OP_COPY
        rows["flags"] = dmaplane.abi.SUBMIT_CHECKSUM
        rows["user_data"] = np.arange(self.chunks)
        rows["source_id"], rows["target_id"] = self.source.id, self.target.id
        offsets = np.arange(self.chunks, dtype=np.uint64) * np.uint64(CHUNK_BYTES)
        rows["source_offset"] = rows["target_offset"] = offsets
        rows["length_bytes"] = np.minimum(
            CHUNK_BYTES, np.uint64(self.source.length_bytes) - offsets
        )
        done = self._copy(rows, 0)
        found = np.empty(self.chunks, dtype=np.uint32)
        found[done["user_data"].astype(np.intp)] = done["checksum"]
        # The engine's sums say what it read and wrote; these say what lies there now.
        landed = [
            dmaplane.crc32c(self.target[_span(chunk, self.target.length_bytes)].memory())
            for chunk in range(self.chunks)
        ]
        right = bool(len(done) == self.chunks and not done["result"].any())
        right = right and found.tolist() == self.sums and landed == self.sums
        paths = {dmaplane.abi.PATH_LOCAL: "local"}
        taken = sorted({paths.get(int(path), str(path)) for path in done["path"]})
        self.add(
            "streamed",
            right,
            f"{self.chunks} chunks of {CHUNK_BYTES >> 20} MiB by path {', '.join(taken)}: "
            f"{sum(a == b for a, b in zip(landed, self.sums, strict=True))} checksums right",
        )
        ours, plain = [], []
        for turn in range(1, ROUNDS + 1):
            start = time.perf_counter()
            self._copy(rows, turn)
            ours.append(time.perf_counter() - start)
            plain.append(self._memcpy())
        total = self.source.length_bytes / 1e9
        return total / statistics.median(ours), total / statistics.median(plain)

    def _copy(self, rows: Any, turn: int) -> Any:
        answers = []
        for start in range(0, len(rows), SLOTS):
            answers.append(self.channel.submit(rows[start : start + SLOTS], timeout=CHILD_STEP_S))
            part = min(1.0, (start + SLOTS) / len(rows))
            self.progress("stream", (turn + part) / (ROUNDS + 1))
        return np.concatenate(answers)

    def _memcpy(self) -> float:
        source, target = self.source.numpy(), self.target.numpy()
        at, to, length = source.ctypes.data, target.ctypes.data, len(source)
        start = time.perf_counter()
        for offset in range(0, length, CHUNK_BYTES):
            ctypes.memmove(to + offset, at + offset, min(CHUNK_BYTES, length - offset))
        return time.perf_counter() - start

    def hand_over(self) -> None:
        """A child gets the buffer, verifies it, copies from it, and is killed doing so."""
        with _child() as (child, ours):
            with self.source.export(read_only=True) as export:
                request = {
                    "plane": self.plane.name,
                    "checksum": self.whole,
                    "length_bytes": self.source.length_bytes,
                }
                with contextlib.suppress(BrokenPipeError):  # then it has no answer either
                    socket.send_fds(ours, [json.dumps(request).encode()], [export.fd])
            answer = _answer(ours)
            self.progress("hand over", 0.4)
            same = answer.get("checksum") == self.whole and not answer.get("error")
            self.add(
                "handed over",
                same,
                answer.get("error")
                or f"process {child.pid} imported the descriptor and found the same bytes",
            )
            copied = _answer(ours)
            self.progress("hand over", 0.6)
            self._held(child.pid)
            theirs = _memory_of(child.pid) - _memory_of(os.getpid())
            alive = child.poll() is None
            child.send_signal(signal.SIGKILL)
            child.wait()
        self._killed(child.pid, alive, copied)
        self._nothing_left(theirs)
        self.progress("hand over", 1.0)

    def _held(self, pid: int) -> None:
        """While the child has it, the buffer cannot be freed, and the holder is named."""
        if dmaplane.Capability.EXPORT_TRACKED not in self.plane.capabilities:
            return
        if not self.source.holders.exports:
            self.add("protected", False, f"process {pid} is no holder of the buffer")
            return
        try:
            self.source.destroy()
        except dmaplane.BusyError as busy:
            self.add(
                "protected",
                busy.holders.exports > 0,
                f"destroy while process {pid} has it: EBUSY, held by {busy.holders}",
            )
        else:
            raise dmaplane.ClosedError("the buffer was destroyed while another process had it")

    def _killed(self, pid: int, alive: bool, copied: dict[str, Any]) -> None:
        start = time.monotonic()
        while self.source.holders.exports and time.monotonic() - start < RETURN_S:
            time.sleep(0.001)
        took = time.monotonic() - start
        left = self.source.holders.exports
        moved = copied.get("bytes", 0)
        self.add(
            "killed",
            alive and moved > 0 and left == 0,
            f"kill -9 of {pid} while it copied ({moved >> 20} MiB so far): "
            f"{left} holders after {took * 1e3:.0f} ms",
        )

    def _nothing_left(self, theirs: set[Memory]) -> None:
        """No process can reach memory that was the child's own."""
        start = time.monotonic()
        while True:
            left = theirs & _memory_of_all()
            if not left or time.monotonic() - start > RETURN_S:
                break
            time.sleep(0.01)
        kinds = collections.Counter(memory.what for memory in theirs)
        counts = ", ".join(
            f"{count} {kind if count != 1 else kind[:-1]}" for kind, count in sorted(kinds.items())
        )
        self.add(
            "nothing leaked",
            bool(theirs) and not left,
            f"{counts or 'nothing'} were the child's own, {len(left)} of them remain",
        )

    def intact(self) -> None:
        """The bytes of the parent, by checksum, after the kill."""
        wrong = 0
        for chunk, expected in enumerate(self.sums):
            span = _span(chunk, self.source.length_bytes)
            wrong += dmaplane.crc32c(self.source[span].memory()) != expected
            self.progress("verify", (chunk + 1) / self.chunks)
        done = self.channel.copy(
            self.target[: min(CHUNK_BYTES, self.target.length_bytes)],
            self.source[: min(CHUNK_BYTES, self.source.length_bytes)],
            checksum=True,
        ).wait(timeout=CHILD_STEP_S)
        self.add(
            "intact",
            wrong == 0 and done.checksum == self.sums[0],
            f"{self.chunks - wrong} of {self.chunks} chunks unchanged; the channel still serves",
        )


def run(
    *,
    plane: Literal["auto", "kernel", "embedded"] = "auto",
    node: int | None = None,
    length_bytes: int = 256 << 20,
    progress: Callable[[str, float], None] = lambda stage, part: None,
) -> Outcome:
    """Does it all. @progress is told the stage and how much of it is done, 0.0 .. 1.0.

    @node: the first node with memory if left out. A failed check is a Step that did not
    pass; only what makes the demo impossible (no plane, no memory there) is an exception.
    """
    with dmaplane.open(plane=plane) as opened:
        known = [found.node for found in opened.topology().nodes if found.memory_bytes]
        chosen = known[0] if node is None and known else node or 0
        if chosen not in known:
            raise dmaplane.InvalidError(
                "node", f"{chosen} has no memory here", fix=f"one of {known}"
            )
        with opened.channel(slots=SLOTS):
            pass  # what a first channel leaves behind for good belongs to "before"
        before = Traces.now(opened)
        with (
            opened.buffer(length_bytes, node=chosen, strict=True) as source,
            opened.buffer(length_bytes, node=chosen, strict=True) as target,
            opened.channel(slots=SLOTS) as channel,
        ):
            demo = _Demo(opened, source, target, channel, progress)
            demo.placement(chosen)
            demo.fill()
            rate, memcpy_rate = demo.stream()
            demo.hand_over()
            demo.intact()
        _returned(demo, before)
        return Outcome(
            plane=opened.name,
            reason=opened.reason,
            path=opened.path,
            node=chosen,
            bytes=length_bytes,
            gb_per_s=rate,
            memcpy_gb_per_s=memcpy_rate,
            checks=tuple(demo.steps),
        )


def _returned(demo: _Demo, before: Traces) -> None:
    after = Traces.now(demo.plane)
    grown = [
        f"{field.name} {getattr(before, field.name)} -> {getattr(after, field.name)}"
        for field in dataclasses.fields(Traces)
        if getattr(after, field.name) > getattr(before, field.name)
    ]
    demo.add(
        "all returned",
        not grown,
        "; ".join(grown)
        or f"buffers, mappings, {after.descriptors} descriptors and shared memory as before",
    )


@contextlib.contextmanager
def _child() -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """The second process and our end of the socket to it; both gone afterwards, come what may."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        ours.settimeout(CHILD_STEP_S)
        with theirs:
            child = subprocess.Popen(
                [sys.executable, "-m", "dmaplane._demo_child", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        try:
            yield child, ours
        finally:
            child.kill()
            child.wait()


def _answer(ours: socket.socket) -> dict[str, Any]:
    """What the child says next; an "error" if it says nothing."""
    try:
        said = ours.recv(65536)
    except TimeoutError:
        return {"error": f"the child did not answer within {CHILD_STEP_S:.0f} s"}
    except ConnectionResetError:
        said = b""
    if not said:
        return {"error": "the child ended without an answer"}
    answer: dict[str, Any] = json.loads(said)
    return answer


def _span(chunk: int, length_bytes: int) -> slice:
    return slice(chunk * CHUNK_BYTES, min((chunk + 1) * CHUNK_BYTES, length_bytes))


def _kibibytes(name: str, key: str) -> int:
    with open(name, encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith(f"{key}:"):
                return int(line.split()[1])
    return 0


def _memory_of(pid: int) -> set[Memory]:
    """Memory files that a process has open or mapped, and what it has of the kernel module."""
    found = set()
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            path = f"/proc/{pid}/fd/{name}"
            try:
                target = os.readlink(path)
                if target.startswith("/memfd:"):
                    status = os.stat(path)
                    found.add(Memory("memory files", status.st_dev, status.st_ino))
                elif target == DEVICE_PATH:
                    found.add(Memory("planes", pid, int(name)))
            except OSError:
                continue  # closed meanwhile
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as file:
            for line in file:
                if "/memfd:" in line:
                    _, _, _, device, inode, _ = line.split(maxsplit=5)
                    major, minor = (int(part, 16) for part in device.split(":"))
                    found.add(Memory("memory files", os.makedev(major, minor), int(inode)))
                elif line.rstrip().endswith(DEVICE_PATH):
                    found.add(Memory("mappings", pid, int(line.partition("-")[0], 16)))
    except OSError:
        pass  # the process ended, or is not ours to look at
    return found


def _memory_of_all() -> set[Memory]:
    return {one for name in os.listdir("/proc") if name.isdigit() for one in _memory_of(int(name))}
