# SPDX-License-Identifier: MIT
"""What a bench says: rows and claims, in the one format of all benches.

A row compares ours with a peer by interleaved pairs (A B A B ...), so that a machine
that drifts drifts for both. `ratio` is the median of the pairwise ratios ours/peer;
`spread` is (p90 - p10) / median of the same ratios, or of ours where there is no peer.
`ours` and `peer` are medians, in `unit`.

A claim is a target with a stable name. All of them are in CLAIMS and nowhere else, each
about one plane; a bench only says what it measured. What could not be measured is left
out of `claims` and named in `skipped`, with the reason.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import pathlib
import platform
import subprocess
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypedDict

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import NotRequired

Relation = Literal[">=", "<="]

PlaneName = Literal["embedded", "kernel"]


class Target(NamedTuple):
    """What a claim is held to, and on which plane: a run on another one does not make it."""

    relation: Relation
    target: float
    plane: PlaneName | None = "embedded"
    """None: on each."""

    def is_about(self, plane: str) -> bool:
        """Is it made by a run on @plane?"""
        return self.plane in (None, plane)


CLAIMS: Final[dict[str, Target]] = {
    "copy/4KiB-batched": Target(">=", 0.90),
    "copy/64KiB": Target(">=", 0.95),
    "copy/1MiB": Target(">=", 0.95),
    "copy/64MiB": Target(">=", 0.95),
    "copy/1MiB-crc32c": Target(">=", 0.60),
    "ring/c-256-Mops": Target(">=", 10.0),
    "ring/python-256-Mops": Target(">=", 5.0),
    "ring/python-one-event-us": Target("<=", 25.0),
    "ring/python-one-spin-us": Target("<=", 5.0),
    "ring/kernel-batch-gain": Target(">=", 10.0, "kernel"),
    "ring/kernel-entries-per-s": Target(">=", 850_000.0, "kernel"),
    "alloc/pages": Target("<=", 1.1),
    "alloc/huge": Target("<=", 1.1),
    "alloc/user": Target("<=", 1.1),
    "observe/loss-percent": Target("<=", 3.0),
    "scale/buffers": Target("<=", 1.3),
    "scale/channels": Target("<=", 1.3),
    "endpoint/shm-4KiB": Target(">=", 0.80),
    "endpoint/shm-64KiB": Target(">=", 0.85),
    "endpoint/shm-1MiB": Target(">=", 0.90),
    "endpoint/shm-4KiB-nixl": Target(">=", 4.0),
    "endpoint/tcp-4KiB": Target(">=", 2.0),
    "endpoint/tcp-64KiB": Target(">=", 1.0),
    "endpoint/tcp-1MiB": Target(">=", 1.0),
    "endpoint/tcp-1MiB-mooncake": Target(">=", 2.0),
    "endpoint/shm-rtt-wait-us": Target("<=", 35.0),
    "endpoint/tcp-rtt-wait-us": Target("<=", 60.0),
    "endpoint/shm-rtt-spin-us": Target("<=", 8.0),
    "endpoint/shm-rtt-c-spin-us": Target("<=", 1.0),
    "endpoint/idle-core": Target("<=", 0.5),
    "endpoint/flat-endpoints": Target("<=", 1.5),
    "endpoint/flat-outstanding": Target("<=", 1.5),
    "endpoint/dead-shm-ms": Target("<=", 50.0),
    "endpoint/dead-tcp-ms": Target("<=", 100.0),
    "kv/shm-128MiB": Target(">=", 0.85),
    "kv/shm-128MiB-checksum": Target(">=", 0.60),
    "kv/tcp-128MiB": Target(">=", 0.9),
    "kv/first-layer": Target("<=", 1.5),
    "kv/post-100k-ms": Target("<=", 10.0),
    "rdma/1MiB": Target(">=", 0.95, None),
    "rdma/4KiB": Target(">=", 1.0, None),
    "rdma/latency": Target("<=", 1.3, None),
    "rdma/kv-128MiB": Target(">=", 0.9, None),
    "registration/flat": Target("<=", 1.5, None),
    "stream/rnr-naks": Target("<=", 0.0, None),
    "stream/cq-overflows": Target("<=", 0.0, None),
    "stream/submit-10000": Target("<=", 1.0),
    "stream/choice": Target("<=", 1.05),
    "stream/4KiB-h2d": Target(">=", 1.0),
    "stream/4KiB-d2h": Target(">=", 1.0),
    "stream/kernel-1KiB-h2d": Target(">=", 0.75),
    "stream/kernel-1KiB-d2h": Target(">=", 0.85),
    "stream/kernel-4KiB-h2d": Target(">=", 0.88),
    "stream/kernel-4KiB-d2h": Target(">=", 0.90),
    "stream/kernel-16KiB-h2d": Target(">=", 0.95),
    "stream/kernel-16KiB-d2h": Target(">=", 0.95),
    "stream/kernel-64KiB-h2d": Target(">=", 0.97),
    "stream/kernel-64KiB-d2h": Target(">=", 0.97),
    "stream/staged-4KiB-h2d": Target(">=", 0.94),
    "stream/staged-4KiB-d2h": Target(">=", 0.94),
    "stream/staged-16KiB-h2d": Target(">=", 0.95),
    "stream/staged-16KiB-d2h": Target(">=", 0.95),
    "stream/batch-64KiB-h2d": Target(">=", 0.94),
    "stream/batch-64KiB-d2h": Target(">=", 0.94),
    "stream/batch-1MiB-h2d": Target(">=", 0.98),
    "stream/batch-1MiB-d2h": Target(">=", 0.98),
    "stream/kernel-1x4KiB-us": Target("<=", 6.0),
    "stream/kernel-64x4KiB-us": Target("<=", 15.0),
    "stream/bar-1x4KiB-us": Target("<=", 1.0),
    "stream/processors": Target("<=", 8.0),
    "stream/busy-loss-percent": Target("<=", 5.0),
}


class Row(TypedDict):
    """One case. Fields are null where there is no peer, or nothing could be measured."""

    case: str
    unit: str
    ours: float | None
    peer_name: str | None
    peer: float | None
    ratio: float | None
    spread: float | None
    samples: int


class Claim(TypedDict):
    """A target, and whether it holds."""

    name: str
    measured: float
    target: float
    relation: Relation
    holds: bool


class Skipped(TypedDict):
    """A claim that this machine cannot show, and why."""

    name: str
    reason: str


class Machine(TypedDict):
    """Where it was measured."""

    cpu: str
    cores: int
    memory_bytes: int
    kernel: str
    plane: str
    virtual: bool | None
    load: float


class Result(TypedDict):
    """What `dmaplane bench NAME --json` prints."""

    bench: str
    version: str
    commit: str | None
    measured_at: str
    quick: bool
    machine: Machine
    rows: list[Row]
    claims: list[Claim]
    skipped: list[Skipped]
    notes: NotRequired[dict[str, Any]]
    """What a bench has to say beside figures; left out by one that has nothing."""


@dataclasses.dataclass
class Measured:
    """What a bench's measure() fills: `plane` is the one it was served by."""

    plane: str
    rows: list[Row] = dataclasses.field(default_factory=list)
    claims: list[Claim] = dataclasses.field(default_factory=list)
    skipped: list[Skipped] = dataclasses.field(default_factory=list)
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)

    def add(self, row: Row, claim_name: str | None = None, value: float | None = None) -> None:
        """A row; its ratio (or @value) is what @claim_name is about."""
        self.rows.append(row)
        if claim_name is not None:
            measured = row["ratio"] if value is None else value
            assert measured is not None, claim_name
            self.claim(claim_name, measured)

    def claim(self, name: str, measured: float) -> None:
        """What @name comes to, if it is about this plane."""
        if CLAIMS[name].is_about(self.plane):
            self.claims.append(claim(name, measured))

    def skip(self, row: Row, claim_name: str, reason: str) -> None:
        """A row without figures, and why its claim cannot be shown here."""
        self.rows.append(row)
        if CLAIMS[claim_name].is_about(self.plane):
            self.skipped.append(Skipped(name=claim_name, reason=reason))


def spread_of(samples: Sequence[float]) -> float:
    """(p90 - p10) / median."""
    low, middle, high = np.percentile(np.asarray(samples, dtype=float), (10, 50, 90))
    return float((high - low) / middle) if middle else 0.0


def median(samples: Sequence[float]) -> float:
    """The middle one."""
    return float(np.median(np.asarray(samples, dtype=float)))


def paired_row(
    case: str, unit: str, ours: Sequence[float], peer_name: str, peer: Sequence[float]
) -> Row:
    """A row from interleaved pairs: ours[i] and peer[i] were measured next to each other."""
    ratios = [mine / other for mine, other in zip(ours, peer, strict=True)]
    return Row(
        case=case,
        unit=unit,
        ours=median(ours),
        peer_name=peer_name,
        peer=median(peer),
        ratio=median(ratios),
        spread=spread_of(ratios),
        samples=len(ratios),
    )


def single_row(case: str, unit: str, ours: Sequence[float]) -> Row:
    """A row with no peer."""
    return Row(
        case=case,
        unit=unit,
        ours=median(ours),
        peer_name=None,
        peer=None,
        ratio=None,
        spread=spread_of(ours),
        samples=len(ours),
    )


def empty_row(case: str, unit: str) -> Row:
    """A row for what could not be measured here."""
    return Row(
        case=case,
        unit=unit,
        ours=None,
        peer_name=None,
        peer=None,
        ratio=None,
        spread=None,
        samples=0,
    )


def claim(name: str, measured: float) -> Claim:
    """A claim of CLAIMS, judged. NaN never holds."""
    relation, target, _ = CLAIMS[name]
    holds = measured >= target if relation == ">=" else measured <= target
    return Claim(name=name, measured=measured, target=target, relation=relation, holds=bool(holds))


def all_hold(result: Result) -> bool:
    """What --check asks: no claim fails. Skipped ones do not fail; they are named."""
    return all(entry["holds"] for entry in result["claims"])


def save(path: pathlib.Path, result: Result) -> None:
    """Writes it in one step: whatever ends this process, the file is whole, this or the last."""
    text = json.dumps(result, indent=2) + "\n"
    path = path.resolve()
    if path.exists() and not path.is_file():  # a terminal, a pipe: nothing to put in its place
        path.write_text(text, encoding="utf-8")
        return
    new = path.with_name(path.name + ".new")
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def interleaved(
    pairs: int,
    ours: Callable[[], float],
    peer: Callable[[], float],
    *,
    warm_up: int = 1,
    step: Callable[[], None] | None = None,
) -> tuple[list[float], list[float]]:
    """Runs A B, then B A, and so on, so that neither always comes second."""
    mine: list[float] = []
    other: list[float] = []
    for _ in range(warm_up):
        ours()
        peer()
    for index in range(pairs):
        if index % 2:
            other.append(peer())
            mine.append(ours())
        else:
            mine.append(ours())
            other.append(peer())
        if step is not None:
            step()
    return mine, other


# ---- where it was measured


def _first_value(path: str, key: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() == key:
                    return value.strip()
    except OSError:
        return None
    return None


def _virtual() -> bool | None:
    flags = _first_value("/proc/cpuinfo", "flags")
    if flags is not None:
        return "hypervisor" in flags.split()
    return None  # this architecture does not say


def machine(plane: str) -> Machine:
    """This machine, as far as it matters to a figure."""
    return Machine(
        cpu=_first_value("/proc/cpuinfo", "model name") or platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kernel=platform.release(),
        plane=plane,
        virtual=_virtual(),
        load=round(os.getloadavg()[0], 2),
    )


def commit() -> str | None:
    """The commit of the checkout this package lies in; None once it is installed elsewhere.

    DMAPLANE_COMMIT says it for a copy of a checkout that came without its history.
    """
    told = os.environ.get("DMAPLANE_COMMIT", "")
    if told:
        return told
    here = pathlib.Path(__file__).resolve().parent
    try:
        said = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--exclude=*"],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    return said.stdout.strip() or None if said.returncode == 0 else None


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
