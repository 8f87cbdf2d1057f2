# SPDX-License-Identifier: MIT
"""What an administrator can see of the module: tracepoints, debugfs, counters, topology (L11)."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import pytest
import soft_roce
from driver import Driver
from ivshmem import BAR, Ivshmem

import dmaplane
from dmaplane import _abi
from dmaplane.testing import _rig

TRACING = Path("/sys/kernel/tracing")
DEBUGFS = Path("/sys/kernel/debug/dmaplane")
FILES = ("planes", "objects", "memory", "histograms")
KERNEL_ADDRESS = re.compile(r"\bffff[0-9a-f]{12}\b")
ID_OF_PLANE = re.compile(r"plane=[0-9a-f]{16}")
PAGE = 4096

Row = dict[str, str]


def fields(text: str) -> Row:
    return dict(word.split("=", 1) for word in text.split())


class Event(NamedTuple):
    name: str
    fields: Row


class Trace:
    """A trace buffer of our own, in which only our events are on."""

    def __init__(self, *events: str) -> None:
        self.folder = TRACING / "instances" / f"dmaplane-{os.getpid()}"
        self._names = events or ("",)

    def __enter__(self) -> Trace:
        # To know the names of processes the scheduler's code is patched while it runs, which
        # emulated machines of several CPUs do not always survive. We do without the names.
        (TRACING / "options/record-cmd").write_text("0")
        self.folder.mkdir()
        self.switch(on=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.switch(on=False)
        self.folder.rmdir()

    def switch(self, *, on: bool) -> None:
        for name in self._names:
            (self.folder / "events/dmaplane" / name / "enable").write_text("1" if on else "0")

    def text(self) -> str:
        lines = (self.folder / "trace").read_text().splitlines()
        return "\n".join(line for line in lines if not line.startswith("#"))

    def events(self) -> list[Event]:
        found = re.findall(r": (dmp_\w+): (.*)$", self.text(), re.MULTILINE)
        return [Event(name, fields(rest)) for name, rest in found]

    def named(self, name: str, **wanted: object) -> list[Row]:
        """Events of a name whose fields have these values."""
        want = {key: str(value) for key, value in wanted.items()}
        return [
            row for event, row in self.events() if event == name and want.items() <= row.items()
        ]

    def wait_for(self, name: str, **wanted: object) -> Row:
        """The first such event, which may still be on its way."""
        _rig.wait_until(
            lambda: bool(self.named(name, **wanted)), _rig.PATIENCE_S, f"{name} {wanted}"
        )
        return self.named(name, **wanted)[0]


def lines(name: str) -> list[str]:
    return (DEBUGFS / name).read_text().splitlines()


def incarnation(plane: dmaplane.Plane) -> str:
    return f"{plane.incarnation:016x}"


def objects(plane: dmaplane.Plane) -> dict[int, Row]:
    rows = [fields(line) for line in lines("objects")]
    return {int(row["id"]): row for row in rows if row["plane"] == incarnation(plane)}


def memory() -> Row:
    (line,) = lines("memory")
    return fields(line)


@pytest.fixture
def plane() -> Iterator[dmaplane.Plane]:
    with dmaplane.open(plane="kernel") as plane:
        yield plane


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """After every test: no plane, no object, no memory, no charge."""
    counts = ("memories", "charged_bytes", "buffers", "channels")
    yield
    # A plane leaves its list before what it had is freed.
    _rig.wait_until(
        lambda: not lines("planes") and all(memory()[name] == "0" for name in counts),
        _rig.PATIENCE_S,
        "nothing left",
    )
    assert not lines("objects")
    assert not lines("histograms")


def run_one_copy(plane: dmaplane.Plane, user_data: int = 77, **fields: int) -> tuple[int, int, int]:
    """Everything a copy needs, made and destroyed again: (source, target, channel).

    @fields: of the channel.
    """
    source = _rig.create_buffer(plane, 2 * PAGE).buffer_id
    target = _rig.create_buffer(plane, 3 * PAGE).buffer_id
    with _rig.Rings(plane, slots=8, **fields) as rings:
        row = _rig.copy_of(source, target, 5000, user_data=user_data)
        assert rings.run(_rig.rows_of(row))["result"][0] == 0
        identity = rings.id
    for buffer in (source, target):
        _rig.expect(_rig.destroy(plane, _abi.BUFFER_DESTROY, buffer), 0)
    return source, target, identity


# ---- tracepoints


def test_every_edge_of_a_copy_is_traced_with_its_fields() -> None:
    with Trace() as trace:
        with dmaplane.open(plane="kernel") as plane:
            mine = incarnation(plane)
            # A worker that is bound does the work itself.
            bound = {"flags": _abi.CHANNEL_BIND_CPU, "cpu": 0}
            source, target, channel = run_one_copy(plane, **bound)
        trace.wait_for("dmp_plane_close", plane=mine)
        events = [event for event in trace.events() if event.fields.get("plane") == mine]
    (opened,) = (row for name, row in events if name == "dmp_plane_open")
    assert opened["owner"] == str(os.getpid())
    created = {row["id"]: row for name, row in events if name == "dmp_buffer_create"}
    assert set(created) == {str(source), str(target)}
    made = created[str(source)]
    assert made["kind"] == "pages"
    assert made["state"] == "live"
    assert made["bytes"] == str(2 * PAGE)
    assert int(made["node"]) >= 0
    assert made["memory"] != created[str(target)]["memory"]

    ring = [(name, row) for name, row in events if row.get("id") == str(channel)]
    names = [name for name, _ in ring]
    order = ("create", "map", "accept", "take", "complete", "tell", "unmap", "destroy")
    wanted = [
        f"dmp_channel_{word}" if word in ("create", "destroy") else f"dmp_{word}" for word in order
    ]
    assert [name for name in names if name in wanted] == wanted
    rows = dict(ring)
    assert rows["dmp_channel_create"]["slots"] == "8"
    assert rows["dmp_channel_create"]["completion_slots"] == "16"
    assert rows["dmp_channel_create"]["cpu"] == "0"
    assert rows["dmp_map"]["type"] == "channel"
    for name in ("dmp_accept", "dmp_take", "dmp_tell"):
        assert rows[name]["count"] == "1"
    assert rows["dmp_accept"]["in_flight"] == "1"
    done = rows["dmp_complete"]
    assert done["user_data"] == "77"
    assert done["operation"] == "copy"
    assert (done["source"], done["target"]) == (str(source), str(target))
    assert done["result"] == "0"
    assert done["bytes"] == "5000"
    assert 0 < int(done["latency_ns"]) < 60e9

    every = [name for name, _ in events]
    assert every.count("dmp_worker_start") == every.count("dmp_worker_stop") == 1
    assert every.count("dmp_buffer_destroy") == 2
    assert every[0] == "dmp_plane_open"
    assert every[-1] == "dmp_plane_close"


def test_close_tells_what_was_left_and_frees_it_visibly() -> None:
    with Trace() as trace:
        with dmaplane.open(plane="kernel") as plane:
            mine = incarnation(plane)
            left = {str(_rig.create_buffer(plane, PAGE).buffer_id) for _ in range(2)}
            rings = _rig.Rings(plane, slots=8)
            rings.unmap()
        closed = trace.wait_for("dmp_plane_close", plane=mine)
        destroyed = {row["id"] for row in trace.named("dmp_buffer_destroy", plane=mine)}
        assert trace.named("dmp_channel_destroy", plane=mine, id=rings.id)
    assert (closed["buffers"], closed["bytes"], closed["channels"]) == ("2", str(2 * PAGE), "1")
    assert destroyed == left


def test_mapping_of_a_buffer_is_traced_from_map_to_unmap(plane: dmaplane.Plane) -> None:
    with Trace("dmp_map", "dmp_unmap") as trace:
        made = _rig.create_buffer(plane, 3 * PAGE)
        with _rig.Mapped(plane, made):
            (mapped,) = trace.named("dmp_map", id=made.buffer_id, type="buffer")
            assert not trace.named("dmp_unmap")
        (unmapped,) = trace.named("dmp_unmap", id=made.buffer_id)
    assert mapped["bytes"] == unmapped["bytes"] == str(3 * PAGE)


def test_failed_cancelled_and_expired_operations_are_told_apart(plane: dmaplane.Plane) -> None:
    with Trace("dmp_complete", "dmp_cancel", "dmp_expire") as trace:
        with _rig.Rings(plane, slots=8) as rings:
            wrong = {"operation": _abi.OP_COPY, "source_id": 999, "target_id": 998}
            late = {"operation": _abi.OP_NOP, "deadline_ns": 1}
            rings.run(_rig.rows_of({**wrong, "length_bytes": 1}, late))
        with _rig.busy_channel(plane, length_bytes=8 * _rig.MIB) as (rings, _, _):
            request = _abi.Cancel(channel_id=rings.id, flags=_abi.CANCEL_ALL)
            _rig.expect(_rig.ask(plane, _abi.CANCEL, request), 0, errno.ENOENT)
            results = _rig.results(rings.take_exactly(16))
            busy = rings.id
        (cancel,) = trace.named("dmp_cancel", all=1)
        completions = trace.named("dmp_complete", id=busy)
        assert trace.named("dmp_complete", result=-errno.ENOENT, user_data=1)
        assert trace.named("dmp_complete", result=-errno.ETIMEDOUT, user_data=2, bytes=0)
        assert trace.named("dmp_expire", count=1)
    assert int(cancel["found"]) >= int(cancel["cancelled"])
    traced = {int(row["user_data"]): int(row["result"]) for row in completions}
    assert traced == results
    assert list(results.values()).count(-errno.ECANCELED) == request.cancelled


def test_export_is_traced_until_its_last_holder_lets_go(plane: dmaplane.Plane) -> None:
    with Trace() as trace:
        made = _rig.create_buffer(plane, PAGE)
        (created,) = trace.named("dmp_buffer_create", id=made.buffer_id)
        serial = created["memory"]
        first = _rig.export_buffer(plane, made.buffer_id)
        second = _rig.export_buffer(plane, made.buffer_id)
        assert [row["exports"] for row in trace.named("dmp_export", memory=serial)] == ["1", "2"]
        os.close(first)
        os.close(second)
        trace.wait_for("dmp_export_release", memory=serial, exports=0)
        _rig.expect(
            _rig.destroy(plane, _abi.BUFFER_DESTROY, made.buffer_id, drain_until=_rig.later()), 0
        )
        trace.wait_for("dmp_memory_free", memory=serial)
        # The memory goes with the buffer, not before it.
        names = [name for name, row in trace.events() if row.get("memory") == serial]
    assert names.index("dmp_buffer_destroy") < names.index("dmp_memory_free")


def test_import_is_traced_with_the_memory_it_made(plane: dmaplane.Plane) -> None:
    made = _rig.create_buffer(plane, 2 * PAGE)
    fd = _rig.export_buffer(plane, made.buffer_id)
    try:
        with Trace("dmp_import", "dmp_buffer_create") as trace:
            request = _abi.BufferImport(fd=fd)
            _rig.expect(_rig.ask(plane, _abi.BUFFER_IMPORT, request), 0)
            (created,) = trace.named("dmp_buffer_create", id=request.buffer_id, kind="imported")
            assert trace.named("dmp_import", memory=created["memory"], bytes=2 * PAGE)
    finally:
        os.close(fd)


@pytest.fixture
def device(share: Path) -> Iterator[Ivshmem]:
    """A PCI device with memory; put back if the test takes it away."""
    found = Ivshmem(share / "ivshmem")
    yield found
    if not found.present:
        found.rescan()


def test_revocation_is_traced_from_the_memory_to_the_event(
    plane: dmaplane.Plane, device: Ivshmem
) -> None:
    domain, bus, slot, function = (int(word, 16) for word in re.split("[:.]", device.address))
    address = domain << 16 | bus << 8 | slot << 3 | function
    with Trace() as trace, _rig.Rings(plane, slots=8) as rings:
        made = _rig.create_buffer(
            plane, PAGE, kind=_abi.KIND_PEER, peer_device=address, peer_bar=BAR
        )
        (created,) = trace.named("dmp_buffer_create", id=made.buffer_id, kind="peer")
        device.remove()
        (event,) = rings.take_exactly(1)
        assert event["operation"] == _abi.EVENT_BUFFER_REVOKED
        assert event["user_data"] == made.buffer_id
        assert objects(plane)[made.buffer_id]["state"] == "revoked"
        (revoked,) = trace.named("dmp_revoke")
        (state,) = trace.named("dmp_buffer_state", id=made.buffer_id)
        (told,) = trace.named("dmp_event", id=rings.id)
        names = [name for name, _ in trace.events()]
    assert revoked["memory"] == state["memory"] == created["memory"]
    assert state["state"] == "revoked"
    assert (told["event"], told["user_data"]) == ("buffer_revoked", str(made.buffer_id))
    order = [names.index(name) for name in ("dmp_revoke", "dmp_buffer_state", "dmp_event")]
    assert order == sorted(order)


def test_events_that_are_off_leave_nothing(plane: dmaplane.Plane) -> None:
    with Trace() as trace:
        run_one_copy(plane, 1)
        assert trace.named("dmp_complete", user_data=1)
        trace.switch(on=False)
        before = trace.text()
        run_one_copy(plane, 2)
        assert trace.text() == before
        trace.switch(on=True)
        run_one_copy(plane, 3)
        assert trace.named("dmp_complete", user_data=3)


def test_what_is_shown_holds_no_kernel_address(plane: dmaplane.Plane) -> None:
    with Trace() as trace:
        run_one_copy(plane)
        made = _rig.create_buffer(plane, PAGE)
        with _rig.Mapped(plane, made), _rig.Rings(plane, slots=8) as rings:
            rings.run(_rig.rows_of({"operation": _abi.OP_NOP}))
            shown = "\n".join((DEBUGFS / name).read_text() for name in FILES)
        shown += trace.text()
    assert "dmp_complete" in shown
    assert "type=buffer" in shown
    assert not KERNEL_ADDRESS.findall(ID_OF_PLANE.sub("", shown))


# ---- debugfs


def test_only_root_can_look() -> None:
    for name in FILES:
        found = (DEBUGFS / name).stat()
        assert stat.S_IMODE(found.st_mode) == 0o400
        assert found.st_uid == 0

    def try_all(to_parent: socket.socket) -> None:
        os.setgid(65534)
        os.setuid(65534)
        for name in FILES:
            with contextlib.suppress(PermissionError):
                (DEBUGFS / name).read_text()
                to_parent.sendall(b"!" + name.encode())
        to_parent.sendall(b"refused")

    with _rig.Child(try_all) as child:
        assert child.hear() == b"refused"
        child.join()


def test_buffer_is_shown_with_its_holders(plane: dmaplane.Plane) -> None:
    made = _rig.create_buffer(plane, 3 * PAGE)
    row = objects(plane)[made.buffer_id]
    assert (row["type"], row["kind"], row["state"]) == ("buffer", "pages", "live")
    assert row["bytes"] == str(3 * PAGE)
    assert (row["mappings"], row["exports"], row["operations"]) == ("0", "0", "0")
    query = _rig.query_buffer(plane, made.buffer_id)
    pages = {node: count for node, count in enumerate(query.node_pages) if count}
    assert row["nodes"] == ",".join(f"{node}:{count}" for node, count in pages.items())
    assert sum(pages.values()) == int(row["pages"]) == query.pages

    fd = _rig.export_buffer(plane, made.buffer_id)
    with _rig.Mapped(plane, made), _rig.Mapped(plane, made):
        row = objects(plane)[made.buffer_id]
        assert (row["mappings"], row["exports"]) == ("2", "1")
    os.close(fd)
    _rig.wait_until(
        lambda: objects(plane)[made.buffer_id]["exports"] == "0", _rig.PATIENCE_S, "no export"
    )
    assert objects(plane)[made.buffer_id]["mappings"] == "0"
    _rig.expect(_rig.destroy(plane, _abi.BUFFER_DESTROY, made.buffer_id), 0)
    assert made.buffer_id not in objects(plane)


def test_draining_buffer_is_shown_as_such(plane: dmaplane.Plane) -> None:
    made = _rig.create_buffer(plane, PAGE)
    with _rig.Mapped(plane, made):
        answer = _rig.destroy(plane, _abi.BUFFER_DESTROY, made.buffer_id, drain_until=1)
        _rig.expect(answer, errno.ETIMEDOUT)
        assert objects(plane)[made.buffer_id]["state"] == "draining"


def test_channel_at_work_is_shown_with_what_it_holds(plane: dmaplane.Plane) -> None:
    """Behind a long copy the rest waits; both of its buffers are held by all of them."""
    for _ in range(20):
        with _rig.busy_channel(plane, length_bytes=16 * _rig.MIB) as (rings, source, target):
            shown = objects(plane)
            rings.take_exactly(16)
        channel = shown[rings.id]
        assert (channel["type"], channel["slots"]) == ("channel", "32")
        assert int(channel["queued"]) + int(channel["running"]) <= int(channel["in_flight"])
        for buffer in (source, target):
            _rig.expect(_rig.destroy(plane, _abi.BUFFER_DESTROY, buffer), 0)
        held = {int(shown[buffer]["operations"]) for buffer in (source, target)}
        if int(channel["in_flight"]) and min(held):
            assert max(held) <= 16
            return
    pytest.fail("20 times all copies were over before anybody could look")


def test_each_of_many_objects_is_shown_once(plane: dmaplane.Plane) -> None:
    """More text than fits one buffer of the file, over two planes."""
    count = 700
    with dmaplane.open(plane="kernel") as other:
        wanted = {
            (incarnation(owner), _rig.create_buffer(owner, PAGE).buffer_id)
            for owner in (plane, other)
            for _ in range(count)
        }
        rows = [fields(line) for line in lines("objects")]
        shown = [(row["plane"], int(row["id"])) for row in rows]
    assert len(shown) == len(set(shown)) == 2 * count
    assert set(shown) == wanted


def test_looking_while_everything_changes_disturbs_nobody(plane: dmaplane.Plane) -> None:
    over = threading.Event()
    trouble: list[BaseException] = []

    def change() -> None:
        try:
            while not over.is_set():
                with dmaplane.open(plane="kernel") as passing:
                    run_one_copy(passing)
                run_one_copy(plane)
        except BaseException as reason:
            trouble.append(reason)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        end = time.monotonic() + 3.0
        seen = 0
        while time.monotonic() < end:
            for name in FILES:
                for line in lines(name):
                    seen += bool(fields(line))
    finally:
        over.set()
        thread.join()
    assert not trouble, trouble
    assert seen


def test_what_is_limited_is_summed_over_all_planes(plane: dmaplane.Plane, driver: Driver) -> None:
    with dmaplane.open(plane="kernel") as other, _rig.Rings(plane, slots=8):
        for owner, pages in ((plane, 1), (other, 2), (other, 3)):
            _rig.create_buffer(owner, pages * PAGE)
        row = memory()
    assert (row["memories"], row["buffers"], row["channels"]) == ("3", "3", "1")
    assert int(row["charged_bytes"]) > 6 * PAGE  # the rings are charged, too
    for name in ("bytes_max", "buffers_max", "channels_max"):
        assert row[name] == driver.parameter(name)


def test_memory_that_outlives_its_plane_is_still_counted() -> None:
    assert memory()["charged_bytes"] == "0"
    with dmaplane.open(plane="kernel") as plane:
        made = _rig.create_buffer(plane, 64 * PAGE)
        fd = _rig.export_buffer(plane, made.buffer_id)
    try:
        _rig.wait_until(lambda: not lines("planes"), _rig.PATIENCE_S, "the plane is gone")
        left = memory()
        assert left["memories"] == "1"
        assert int(left["charged_bytes"]) == 64 * PAGE
    finally:
        os.close(fd)
    # nothing_is_left waits for the rest


# ---- counters


def test_counters_are_the_same_by_every_way(plane: dmaplane.Plane) -> None:
    def shown() -> Row:
        (row,) = (fields(line) for line in lines("planes") if incarnation(plane) in line)
        return row

    def check() -> None:
        statistics = plane.statistics()
        row = shown()
        for name in ("submissions", "completions", "errors", "cancelled", "timeouts", "batches"):
            assert row[name] == str(getattr(statistics, name)), name
        assert row["moved"] == str(statistics.bytes)
        assert row["checksummed"] == str(statistics.checksum_bytes)
        assert row["buffers"] == str(statistics.buffers)
        assert row["bytes"] == str(statistics.buffer_bytes)
        assert row["channels"] == str(statistics.channels)
        assert row["mappings"] == str(statistics.mappings)

    source = _rig.create_buffer(plane, 4 * PAGE)
    target = _rig.create_buffer(plane, 4 * PAGE)
    with _rig.Rings(plane, slots=8) as rings:
        copies = [_rig.copy_of(source.buffer_id, target.buffer_id, 100 * n) for n in (1, 2, 3)]
        copies[1]["flags"] = _abi.SUBMIT_CHECKSUM
        bad = _rig.copy_of(source.buffer_id, 12345, 1)
        rings.run(_rig.rows_of(*copies, bad))
        check()
        (line,) = (fields(line) for line in lines("histograms") if line.startswith("plane="))
        buckets = [fields(line) for line in lines("histograms") if line.startswith("\t")]
    assert line["samples"] == "4"
    assert sum(int(bucket["count"]) for bucket in buckets) == 4
    assert all(int(bucket["from_ns"]) < int(bucket["below_ns"]) for bucket in buckets)
    assert int(line["p50_ns"]) <= int(line["p99_ns"])
    worst = buckets[-1]
    assert int(worst["from_ns"]) <= int(line["max_ns"]) < int(worst["below_ns"])
    check()  # what the channel counted stays after it has gone
    row = shown()
    assert (row["submissions"], row["errors"], row["channels"]) == ("4", "1", "0")
    assert (row["moved"], row["checksummed"]) == ("600", "200")


# ---- topology


@pytest.fixture
def soft_roce_device() -> Iterator[None]:
    yield from soft_roce.device()


def test_topology_is_what_sysfs_says(plane: dmaplane.Plane) -> None:
    """The embedded plane reads the same facts another way."""
    ours = plane.topology()
    with dmaplane.open(plane="embedded") as other:
        theirs = other.topology()
    assert len(ours.nodes) == len(theirs.nodes) == plane.nodes
    for mine, its in zip(ours.nodes, theirs.nodes, strict=True):
        assert (mine.node, mine.name) == (its.node, its.name)
        assert (mine.cpus, mine.distances) == (its.cpus, its.distances)
        assert mine.memory_bytes == its.memory_bytes
        assert 0 < mine.memory_free_bytes <= mine.memory_bytes
        assert abs(mine.memory_free_bytes - its.memory_free_bytes) < 128 << 20
    assert ours.gpus == theirs.gpus
    assert ours.nics == theirs.nics


def test_rdma_devices_behind_pci_functions_are_listed(
    plane: dmaplane.Plane, standin: Callable[[str], Driver], soft_roce_device: None
) -> None:
    """A stand-in registers what RDMA drivers register; no RDMA hardware is in the machine."""
    core = Driver(Path("ib_core.ko"))
    assert plane.topology().nics == ()
    module = standin("rdma_names")
    module.load()
    try:
        users = core.users
        assert [nic.name for nic in plane.topology().nics] == ["standin_0", "standin_1"]
        with dmaplane.open(plane="embedded") as other:
            theirs = [nic for nic in other.topology().nics if nic.pci_address]
        assert list(plane.topology().nics) == theirs
        assert core.users == users
    finally:
        module.unload()
    assert plane.topology().nics == ()


def test_rows_beyond_the_last_and_unknown_kinds_are_refused(plane: dmaplane.Plane) -> None:
    def ask(kind: int, index: int) -> int:
        return _rig.ask(plane, _abi.TOPOLOGY, _abi.Topology(kind=kind, index=index))

    for kind in (_abi.TOPOLOGY_NODE, _abi.TOPOLOGY_NIC, _abi.TOPOLOGY_GPU):
        for index in (1000, 0xFFFFFFFF):
            _rig.expect(ask(kind, index), errno.ENOENT)
    _rig.expect(ask(3, 0), errno.EINVAL)
